//! Runs one command in one container, to its end or its time-out.

use std::{sync::Arc, time::Duration};

use rollcall_shared::{
    model::check::{CheckOutcome, CheckRequest, MAX_SAID_BYTES},
    process::{error::one_line, text, time},
};

use crate::{
    docker::{Engine, engine::Exec},
    inventory::container::Container,
    signals::pidfd,
};

/// How long a command may take at most, whatever a request says.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs the command of a request in a container that allows it.
pub async fn run(engine: Arc<dyn Engine>, container: &Container, request: &CheckRequest) -> CheckOutcome {
    match try_to(&*engine, container, request).await {
        Ok(outcome) => outcome,
        Err(error) => CheckOutcome::NotRun(one_line(&error)),
    }
}

async fn try_to(
    engine: &dyn Engine,
    container: &Container,
    request: &CheckRequest,
) -> Result<CheckOutcome, crate::docker::DockerError> {
    if !engine.sees(&container.id, &request.file).await? {
        return Ok(CheckOutcome::Unseen);
    }
    let timeout = request.timeout().min(MAX_TIMEOUT);
    Ok(match engine.exec(&container.id, &request.words(), timeout).await? {
        Exec::Ended { exit_code, output } => {
            // Where the container has ended meanwhile, its end is the reason.
            let same = engine.inspect(&container.id).await?;
            if exit_code != 0 && same.is_none_or(|same| same.incarnation() != container.incarnation()) {
                return Ok(CheckOutcome::NotRun("the container has ended meanwhile".to_owned()));
            }
            CheckOutcome::Ended { exit_code, said: said(&output) }
        }
        Exec::Unfinished { pid } => {
            let is_killed = pid.is_some_and(|pid| pidfd::kill_in(pid, &container.id));
            let rest = if is_killed { "" } else { ", and goes on, as this agent cannot see its process" };
            CheckOutcome::NotRun(format!("it took more than {}{rest}", time::show(timeout)))
        }
    })
}

/// The lines of an output that are not empty, safe to show, within what a verdict may have.
fn said(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    let lines = output.lines().map(str::trim).filter(|line| !line.is_empty()).map(text::escaped);
    let mut said = itertools::Itertools::join(&mut lines.into_iter(), "; ");
    text::shorten(&mut said, MAX_SAID_BYTES);
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_is_one_line_without_control_characters_and_not_too_long() {
        assert_eq!(said(b"\n emerg: x\n\x1b[31mred\xff\n"), "emerg: x; \\u{1b}[31mred\u{fffd}");
        let long = said("é".repeat(5000).as_bytes());
        assert!(long.len() <= MAX_SAID_BYTES && long.len() > MAX_SAID_BYTES - 2, "{}", long.len());
    }
}
