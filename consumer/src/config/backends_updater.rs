//! BackendsUpdater's command line, put into ours: its options with one dash, and the same words with two.
//!
//! It renders one template into the file of `-config` and restarts nginx. Ours differs in one word: `--config` is a
//! file of targets. Beside `--template` there can be none, so there it means the file to render. Pure.

use std::ffi::OsString;

use rollcall_shared::process::setting::SettingError;

/// What was understood of the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    /// The arguments in our own words, the program's name first.
    pub args: Vec<OsString>,
    /// What is to be logged of it.
    pub notes: Vec<String>,
}

/// An option of BackendsUpdater, and how it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Theirs {
    option: TheirOption,
    one_dash: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TheirOption {
    Service,
    Template,
    Config,
    Host,
    Heartbeat,
    BackupDir,
    DockerAddr,
    Since,
}

impl Theirs {
    fn of(word: &str) -> Option<Self> {
        let name = word.strip_prefix('-')?;
        let (name, one_dash) = name.strip_prefix('-').map_or((name, true), |name| (name, false));
        let option = match name {
            "service" => TheirOption::Service,
            "template" => TheirOption::Template,
            "config" => TheirOption::Config,
            "host" => TheirOption::Host,
            "heartbeat" => TheirOption::Heartbeat,
            "bkp_dir" | "bkp-dir" => TheirOption::BackupDir,
            "dockerAddr" | "docker-addr" => TheirOption::DockerAddr,
            "since" => TheirOption::Since,
            _ => return None,
        };
        Some(Self { option, one_dash })
    }
}

/// Flags of ours that say who is notified, and their variables.
const NOTIFIERS: [(&str, &str); 5] = [
    ("--notify-container", "ROLLCALL_NOTIFY_CONTAINER"),
    ("--notify-service", "ROLLCALL_NOTIFY_SERVICE"),
    ("--notify-label", "ROLLCALL_NOTIFY_LABEL"),
    ("--notify-pid-file", "ROLLCALL_NOTIFY_PID_FILE"),
    ("--notify-command", "ROLLCALL_NOTIFY_COMMAND"),
];
/// Where nginx writes its process ID unless it is told otherwise, on Debian and in its own packages.
const NGINX_PID_FILE: &str = "/run/nginx.pid";

/// Puts BackendsUpdater's options into our words; other arguments stay as they are. `is_set` tells of an environment
/// variable whether it is set.
///
/// # Errors
/// A `--config` that may be a file of targets or one to render.
pub fn understand(args: Vec<OsString>, is_set: impl Fn(&str) -> bool) -> Result<Understood, SettingError> {
    let words = Words::of(args);
    let renders_config = words.renders_config(&is_set)?;
    let mut notes = Vec::new();
    if words.has(TheirOption::Since) {
        notes.push("-since is ignored: every container that runs is listed first".to_owned());
    }
    let has_notifier = NOTIFIERS.iter().any(|(flag, variable)| words.has_flag(flag) || is_set(variable));
    let has_host =
        words.has(TheirOption::Host) || words.has_flag("--advertise") || is_set("ROLLCALL_ADVERTISE");
    let has_content = words.has(TheirOption::Template)
        || words.has_flag("--format")
        || ["ROLLCALL_TEMPLATE", "ROLLCALL_FORMAT"].into_iter().any(&is_set);
    let is_theirs = words.0.iter().any(Word::is_one_dash);
    let mut args = words.into_args(renders_config);
    if renders_config && !has_notifier {
        // BackendsUpdater restarts nginx. A file that nobody reads again would be a silent difference.
        args.extend(["--notify-pid-file", NGINX_PID_FILE].map(OsString::from));
        notes.push(format!(
            "nginx is reloaded by {NGINX_PID_FILE}, as no --notify-pid-file, --notify-command or --notify-container \
             says otherwise"
        ));
    }
    // Its own defaults: nginx is on this host, and the template in the current folder.
    if renders_config && is_theirs && !has_host {
        args.extend(["--advertise", "127.0.0.1"].map(OsString::from));
    }
    if renders_config && is_theirs && !has_content {
        args.extend(["--template", "loadbalancer.conf"].map(OsString::from));
    }
    Ok(Understood { args, notes })
}

/// One argument, with what it means to BackendsUpdater. An option's value is with its option.
#[derive(Debug)]
enum Word {
    Theirs { theirs: Theirs, value: Option<OsString> },
    Other(OsString),
}

impl Word {
    fn is_one_dash(&self) -> bool {
        matches!(self, Word::Theirs { theirs: Theirs { one_dash: true, .. }, .. })
    }

    /// It in our words.
    fn into_args(self, renders_config: bool) -> Vec<OsString> {
        let (option, value) = match self {
            Word::Other(arg) => return vec![arg],
            Word::Theirs { theirs, value } => (theirs.option, value),
        };
        let (flag, value) = match option {
            TheirOption::Service => ("--service", value),
            TheirOption::Template => ("--template", value),
            TheirOption::Config if renders_config => ("--dest", value),
            TheirOption::Config => ("--config", value),
            TheirOption::Host => ("--advertise", value),
            TheirOption::Heartbeat => ("--heartbeat", value),
            TheirOption::BackupDir => ("--backup-dir", value),
            TheirOption::DockerAddr => ("--docker-host", value.map(docker_host)),
            TheirOption::Since => return vec![],
        };
        std::iter::once(flag.into()).chain(value).collect()
    }
}

#[derive(Debug)]
struct Words(Vec<Word>);

impl Words {
    fn of(args: Vec<OsString>) -> Self {
        let mut args = args.into_iter();
        let mut words: Vec<Word> = args.next().map(Word::Other).into_iter().collect();
        while let Some(arg) = args.next() {
            let text = arg.to_str().unwrap_or_default();
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (text, None),
            };
            words.push(match Theirs::of(name) {
                Some(theirs) => Word::Theirs { theirs, value: value.or_else(|| args.next()) },
                None => Word::Other(arg),
            });
        }
        Self(words)
    }

    fn has(&self, wanted: TheirOption) -> bool {
        self.0.iter().any(|word| matches!(word, Word::Theirs { theirs, .. } if theirs.option == wanted))
    }

    fn has_flag(&self, flag: &str) -> bool {
        let is_it = |arg: &OsString| {
            arg.to_str()
                .and_then(|arg| arg.strip_prefix(flag))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        self.0.iter().any(|word| matches!(word, Word::Other(arg) if is_it(arg)))
    }

    /// Whether `config` is the file to render.
    fn renders_config(&self, is_set: impl Fn(&str) -> bool) -> Result<bool, SettingError> {
        let config = self.0.iter().find_map(|word| match word {
            Word::Theirs { theirs, value: Some(value) } if theirs.option == TheirOption::Config => {
                Some((theirs.one_dash, value.to_string_lossy().into_owned()))
            }
            _ => None,
        });
        let Some((one_dash, file)) = config else { return Ok(false) };
        if one_dash {
            return Ok(true);
        }
        let has_template = self.has(TheirOption::Template) || is_set("ROLLCALL_TEMPLATE");
        let has_dest = self.has_flag("--dest") || is_set("ROLLCALL_DEST");
        if has_template && !has_dest && file.ends_with(".toml") {
            // It looks like a file of targets, and is not to be overwritten.
            let expected =
                format!("--dest {file} for the file to render, or no --template beside a file of targets");
            return Err(SettingError::new("--config", file, expected));
        }
        Ok(has_template && !has_dest)
    }

    fn into_args(self, renders_config: bool) -> Vec<OsString> {
        self.0.into_iter().flat_map(|word| word.into_args(renders_config)).collect()
    }
}

/// A Docker address as BackendsUpdater takes it, as DOCKER_HOST has it. 0.0.0.0 is where an engine listens; this host
/// reaches it by its loopback address.
fn docker_host(value: OsString) -> OsString {
    let Some(text) = value.to_str() else { return value };
    let (scheme, address) = text.split_once("://").unwrap_or(("tcp", text));
    let address = match address.strip_prefix("0.0.0.0:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_owned(),
    };
    format!("{scheme}://{address}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(line: &str, set: &[&str]) -> Result<(String, Vec<String>), String> {
        let args = std::iter::once("consumer").chain(line.split(' ')).map(OsString::from).collect();
        let Understood { args, notes } =
            understand(args, |name| set.contains(&name)).map_err(|error| error.to_string())?;
        let args: Vec<String> =
            args.into_iter().skip(1).map(|arg| arg.into_string().expect("text")).collect();
        Ok((args.join(" "), notes))
    }

    #[test]
    fn every_option_of_theirs_is_put_into_our_words() {
        let theirs = "-service web[0-9]* -template t -config /x -heartbeat 30s -host 10.0.0.1 -bkp_dir /b \
                      -dockerAddr 0.0.0.0:4243 -since=1412355983";
        let (args, notes) = understood(theirs, &[]).expect("it is understood");
        let ours = "--service web[0-9]* --template t --dest /x --heartbeat 30s --advertise 10.0.0.1 --backup-dir /b \
                    --docker-host tcp://127.0.0.1:4243 --notify-pid-file /run/nginx.pid";
        assert_eq!(args, ours);
        assert!(notes[0].starts_with("-since is ignored") && notes[1].starts_with("nginx is reloaded by"));
        let gnu = "--service web[0-9]* --template t --config /x --heartbeat 30s --host 10.0.0.1 --bkp-dir /b \
                   --docker-addr 0.0.0.0:4243";
        assert_eq!(understood(gnu, &[]).expect("it is understood").0, ours);
    }

    #[test]
    fn the_line_of_its_page_has_its_defaults() {
        let page = "-dockerAddr http://199.127.219.76:4243 -service dailyreport[0-9]*.stackexpress.com -config \
                    /etc/nginx/sites-enabled/loadbalancer.conf -heartbeat 30s";
        let (args, _) = understood(page, &[]).expect("it is understood");
        assert!(args.starts_with("--docker-host http://199.127.219.76:4243 --service dailyreport"), "{args}");
        assert!(args.contains("--dest /etc/nginx/sites-enabled/loadbalancer.conf"), "{args}");
        assert!(
            args.ends_with("/run/nginx.pid --advertise 127.0.0.1 --template loadbalancer.conf"),
            "{args}"
        );
    }

    #[test]
    fn our_own_arguments_stay_as_they_are() {
        for line in [
            "--config /etc/rollcall/targets.toml --once",
            "--config=/etc/rollcall/targets",
            "--dest /x --template t --heartbeat 30s --service web",
            "status --listen 127.0.0.1:1",
            "--config /x --template t --dest /y",
        ] {
            let (args, notes) = understood(line, &[]).expect("it is ours");
            assert_eq!((args.replace('=', " "), notes), (line.replace('=', " "), vec![]));
        }
        let (args, _) =
            understood("--config /x", &["ROLLCALL_TEMPLATE", "ROLLCALL_DEST"]).expect("it is ours");
        assert_eq!(args, "--config /x");
    }

    #[test]
    fn who_is_notified_otherwise_is_not_nginx_by_its_pid_file() {
        let line = "-config /x -template t";
        for (line, set) in [
            (format!("{line} --notify-command=true"), &[][..]),
            (format!("{line} --notify-container proxy"), &[]),
            (line.to_owned(), &["ROLLCALL_NOTIFY_PID_FILE"]),
        ] {
            let (args, notes) = understood(&line, set).expect("it is understood");
            assert!(!args.contains("nginx.pid") && notes.is_empty(), "{args}");
        }
    }

    #[test]
    fn a_file_of_targets_beside_a_template_is_not_overwritten() {
        let error = understood("--config /etc/targets.toml --template t", &[]).expect_err("it is either");
        let expected =
            "--config is /etc/targets.toml: expected --dest /etc/targets.toml for the file to render";
        assert!(error.starts_with(expected), "{error}");
        assert!(understood("-config /etc/traefik.toml -template t", &[]).is_ok(), "it is theirs");
    }

    #[test]
    fn an_option_without_its_value_is_left_to_be_refused() {
        assert_eq!(understood("-service", &[]).expect("it is ours to refuse").0, "--service");
    }
}
