//! In which containers a target's files are checked, which commands are allowed, and what to do about a request. Pure.

use std::sync::Arc;

use rollcall_shared::model::{
    check::{CheckRequest, CheckRule, DEST, FILE, STAGED, Verdict},
    signal::{Incarnation, Receiver},
};

use super::settings::AllowedCommand;
use crate::{
    inventory::container::Container,
    signals::policy::{Candidates, is_meant, lasting_name},
};

/// The label by which a container says which commands may be run in it: words, and `;` between two commands.
pub const EXEC_LABEL: &str = "rollcall.exec";

/// The words that a command begins with, of which the first is the program.
pub type Words = Vec<String>;

/// What to do about one checker of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is answered, or the container does not run any more.
    Nothing,
    /// Answer that the command is not run, and why.
    Refuse(String),
    /// Run the command, and answer.
    Run(Arc<Container>),
}

/// The words of a command, split as a shell does; `None` where there is none, or a quote without its end.
pub fn split(text: &str) -> Option<Words> {
    shlex::split(text).filter(|words| words.first().is_some_and(|program| !program.is_empty()))
}

/// The words of a command before the paths at its end.
pub fn fixed_words(command: &[String]) -> &[String] {
    let paths = command.iter().rev().take_while(|word| is_path(word)).count();
    &command[..command.len() - paths]
}

fn is_path(word: &str) -> bool {
    word == FILE || word == DEST
}

/// Whether a command may be run in a container: by its own label, or by the operator. It is what is allowed, word by
/// word, and after that nothing but the paths.
pub fn is_allowed(container: &Container, command: &[String], allowed: &[AllowedCommand]) -> bool {
    let is_command = |words: &[String]| {
        let rest = command.strip_prefix(words);
        !words.is_empty() && rest.is_some_and(|rest| rest.iter().all(|word| is_path(word)))
    };
    let is_there =
        |rule: &AllowedCommand| rule.to.is_empty() || rule.to.iter().any(|to| is_meant(container, to));
    let by_operator = |rule: &AllowedCommand| is_there(rule) && is_command(&rule.words);
    let by_itself = |label: &String| label.split(';').filter_map(split).any(|words| is_command(&words));
    allowed.iter().any(by_operator) || container.labels.get(EXEC_LABEL).is_some_and(by_itself)
}

/// Why a command is not allowed, and what would allow it; `None` where it is.
fn refusal(container: &Container, command: &[String], allowed: &[AllowedCommand]) -> Option<String> {
    /// A longer one is not repeated, for each of the containers: together the refusals go into one value.
    const MAX_SHOWN_BYTES: usize = 256;
    (!is_allowed(container, command, allowed)).then(|| {
        let (name, lasting) = (&container.name, lasting_name(container));
        let all = command.join(" ");
        if all.len() > MAX_SHOWN_BYTES {
            return format!("container {name} does not allow the command, which has {} bytes", all.len());
        }
        let fixed = shlex::try_join(fixed_words(command).iter().map(String::as_str)).unwrap_or_default();
        format!(
            "container {name} does not allow the command {all:?}: expected its label {EXEC_LABEL}={fixed:?}, or \
             --allow-exec {:?} at the agent",
            format!("{fixed}:{lasting}")
        )
    })
}

/// The containers in which a target's files are checked, in the order of their incarnations.
pub fn checkers(rule: &CheckRule, candidates: &Candidates, allowed: &[AllowedCommand]) -> Vec<Receiver> {
    let checker = |(incarnation, container): (&Incarnation, &Arc<Container>)| {
        is_meant(container, &rule.to).then(|| Receiver {
            incarnation: *incarnation,
            name: container.name.clone(),
            refused: refusal(container, &rule.command, allowed),
        })
    };
    candidates
        .iter()
        .map(|(incarnation, candidate)| (incarnation, &candidate.container))
        .filter_map(checker)
        .collect()
}

/// Decides what to do about one checker of a request, given the last verdict on that target of that checker.
pub fn decide(
    request: &CheckRequest,
    checker: &Incarnation,
    last: Option<&Verdict>,
    candidates: &Candidates,
    allowed: &[AllowedCommand],
) -> Decision {
    let Some(candidate) = candidates.get(checker) else { return Decision::Nothing };
    if last.is_some_and(|last| last.id == request.id) {
        return Decision::Nothing;
    }
    match refusal(&candidate.container, &request.command, allowed).or_else(|| problem(request)) {
        Some(reason) => Decision::Refuse(reason),
        None => Decision::Run(candidate.container.clone()),
    }
}

/// What is wrong with the paths of a request. Only a file that was staged beside its destination may be named, so that
/// no other file of the container can be read by way of what a program says of it.
fn problem(request: &CheckRequest) -> Option<String> {
    let is_plain = |path: &str| {
        path.len() <= 4096
            && !path.contains(char::is_control)
            && path
                .strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
    };
    let CheckRequest { file, dest, command, .. } = request;
    if !command.iter().any(|word| word == FILE) {
        return Some(format!("the command does not name the file: expected {FILE} among its words"));
    }
    let is_staged = dest.rsplit_once('/').is_some_and(|(folder, name)| {
        let random = file.strip_prefix(&format!("{folder}/.{name}{STAGED}"));
        random.is_some_and(|random| !random.contains('/'))
    });
    let is_right = is_plain(file) && is_plain(dest) && is_staged;
    (!is_right)
        .then(|| format!("{file:?} is not a file that was staged beside {dest:?}: expected its whole path"))
}

#[cfg(test)]
mod tests {
    use rollcall_shared::{
        codec::V1,
        model::{check::CheckOutcome, selector::Selector},
    };
    use tokio::time::Instant;

    use super::*;
    use crate::{inventory::container::testing::container, signals::policy::Candidate};

    fn words(text: &str) -> Words {
        split(text).expect("words")
    }

    fn proxy(label: &str) -> Container {
        let mut proxy = container("proxy");
        proxy.labels.insert(EXEC_LABEL.to_owned(), label.to_owned());
        proxy
    }

    fn candidates(container: &Container) -> Candidates {
        let candidate = Candidate { container: Arc::new(container.clone()), ready_at: Instant::now() };
        Candidates::from([(container.incarnation(), candidate)])
    }

    fn request(command: &str, file: &str, dest: &str) -> CheckRequest {
        CheckRequest {
            v: V1,
            id: 7,
            command: words(command),
            file: file.to_owned(),
            dest: dest.to_owned(),
            timeout_ms: 1000,
            checkers: vec![proxy("").incarnation()],
        }
    }

    /// What is decided about a request of `nginx -t -c {file}`, which the label allows.
    fn decided(file: &str, dest: &str) -> Decision {
        let proxy = proxy("nginx -t -c");
        let request = request("nginx -t -c {file}", file, dest);
        decide(&request, &proxy.incarnation(), None, &candidates(&proxy), &[])
    }

    #[test]
    fn only_what_is_allowed_word_by_word_and_then_paths_is_run() {
        for (label, command, expected) in [
            ("nginx -t -c", "nginx -t -c {file}", true),
            ("nginx -t -c", "nginx -t -c {file} {dest}", true),
            ("/c/nginx-check; nginx -t -c", "/c/nginx-check {file} {dest}", true),
            ("nginx -t", "nginx -t -c {file}", false),
            ("nginx -t -c", "nginx -t {file}", false),
            ("nginx -t -c", "nginx -t -c /etc/shadow", false),
            ("nginx -t -c", "nginx -t -c --{file}", false),
            ("nginx -t -c", "nginx -t -cx {file}", false),
            ("nginx", "nginx -s stop {file}", false),
            ("ngin", "nginx {file}", false),
            ("sh -c", "sh -c 'rm -r /' {file}", false),
            ("", "nginx {file}", false),
            (";", "nginx {file}", false),
            ("'nginx -t' -c", "nginx -t -c {file}", false),
            ("nginx 'x", "nginx x {file}", false),
        ] {
            assert_eq!(is_allowed(&proxy(label), &words(command), &[]), expected, "{label:?} {command:?}");
        }
    }

    #[test]
    fn an_operator_allows_a_command_where_the_rule_says_and_a_refusal_names_what_would() {
        let command = words("nginx -t -c {file}");
        for (rule, expected) in [
            ("nginx -t -c", true),
            ("nginx -t -c:proxy", true),
            ("nginx -t -c:rollcall.exec=", true),
            ("nginx -t -c:other", false),
            ("nginx -t:proxy", false),
        ] {
            let allowed = [rule.parse().expect("a rule")];
            assert_eq!(is_allowed(&proxy(""), &command, &allowed), expected, "{rule}");
        }
        let refused = refusal(&proxy(""), &command, &[]).expect("nobody allows it");
        assert_eq!(
            refused,
            "container proxy does not allow the command \"nginx -t -c {file}\": expected its label \
             rollcall.exec=\"nginx -t -c\", or --allow-exec \"nginx -t -c:proxy\" at the agent"
        );
    }

    #[test]
    fn a_request_runs_on_a_file_that_was_staged_beside_its_destination_and_on_no_other() {
        assert!(matches!(decided("/c/.a.conf.rollcall-x1.conf", "/c/a.conf"), Decision::Run(_)));
        for (file, dest) in [
            ("/etc/shadow", "/c/a.conf"),
            ("/c/a.conf", "/c/a.conf"),
            ("/c/.a.conf.rollcall-/../../etc/shadow", "/c/a.conf"),
            ("/d/.a.conf.rollcall-x", "/c/a.conf"),
            ("/c/.b.conf.rollcall-x", "/c/a.conf"),
            ("c/.a.conf.rollcall-x", "c/a.conf"),
            ("/c/../.a.rollcall-x", "/c/../a"),
            ("/c//.a.rollcall-x", "/c//a"),
            ("/c/.a.rollcall-x\n", "/c/a"),
            ("-o", "a"),
        ] {
            assert!(matches!(decided(file, dest), Decision::Refuse(_)), "{file:?} {dest:?}");
        }
    }

    #[test]
    fn a_request_is_answered_once_and_only_for_the_run_that_it_names() {
        let proxy = proxy("nginx -t -c");
        let request = request("nginx -t -c {file}", "/c/.a.rollcall-x", "/c/a");
        let verdict = |id| Verdict {
            incarnation: proxy.incarnation(),
            id,
            outcome: CheckOutcome::Unseen,
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let (running, this) = (candidates(&proxy), proxy.incarnation());
        assert_eq!(decide(&request, &this, Some(&verdict(7)), &running, &[]), Decision::Nothing);
        assert!(matches!(decide(&request, &this, Some(&verdict(6)), &running, &[]), Decision::Run(_)));
        let started_at = proxy.started_at + jiff::SignedDuration::from_secs(1);
        let other = candidates(&Container { started_at, ..proxy.clone() });
        assert_eq!(decide(&request, &this, None, &other, &[]), Decision::Nothing);
    }

    #[test]
    fn the_checkers_are_the_containers_that_are_meant() {
        let proxy = proxy("nginx -t -c");
        let rule = |to: &str, command: &str| CheckRule {
            to: Selector::container(to.parse().expect("a name")),
            command: words(command),
        };
        let found = checkers(&rule("proxy", "nginx -t -c {file}"), &candidates(&proxy), &[]);
        assert_eq!((found.len(), &found[0].refused), (1, &None));
        let refused = checkers(&rule("proxy", "rm {file}"), &candidates(&proxy), &[]);
        assert!(refused[0].refused.as_ref().is_some_and(|reason| reason.contains("rollcall.exec=\"rm\"")));
        let long = checkers(
            &rule("proxy", &format!("rm {} {{file}}", "x".repeat(60_000))),
            &candidates(&proxy),
            &[],
        );
        let reason = long[0].refused.as_deref();
        assert_eq!(reason, Some("container proxy does not allow the command, which has 60010 bytes"));
        assert_eq!(checkers(&rule("other", "nginx -t -c {file}"), &candidates(&proxy), &[]), []);
    }
}
