//! Asks a program that follows its file by itself whether it has what is in the file.
//!
//! ```text
//! installed bytes -> what the program should have ─┐
//! GET of its own interface -> what it has ─────────┴─> comparison -> Ok, or what differs on one line
//! ```
//!
//! What is wanted is read from the bytes that are installed, so that it is the file that counts. Comparing is pure; asking
//! is one request, which is bounded in time and size. What a program answers is as untrusted as what is registered.

mod asked;
mod comparison;
mod envoy;
mod prometheus;
pub mod settings;
mod traefik;

pub use asked::AskError;
pub use settings::{RawReadBack, ReadBack};

use self::settings::Program;

/// Why a file does not count as taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadBackError {
    /// The program has something else: it may have it in a moment, or refuses the file.
    #[error("{program} {difference}")]
    Differs {
        /// The program's name.
        program: &'static str,
        /// What differs, on one line.
        difference: String,
    },
    /// The program cannot be asked.
    #[error("{program} cannot be asked at {url}")]
    NotAsked {
        /// The program's name.
        program: &'static str,
        /// Where.
        url: String,
        /// Why not.
        source: AskError,
    },
    /// The file cannot be compared with anything, such as one that a template makes in another way.
    #[error("what {program} should have cannot be read from the file")]
    Unreadable {
        /// The program's name.
        program: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
}

impl ReadBackError {
    /// Whether the program was asked, and does not have it yet.
    pub fn is_not_yet(&self) -> bool {
        matches!(self, Self::Differs { .. })
    }
}

/// Why the installed bytes and an answer do not come to the same.
#[derive(Debug)]
enum Mismatch {
    /// They differ: how, on one line.
    Differs(String),
    /// The file cannot be read.
    Installed(serde_json::Error),
    /// The answer cannot be read.
    Answer(serde_json::Error),
}

/// Asks whether the program has exactly what is in these bytes; of several files, one after another.
///
/// # Errors
/// It has something else, or cannot be asked. Nothing is tried again here.
pub async fn read_back(config: &ReadBack, installed: &[u8]) -> Result<(), ReadBackError> {
    let ReadBack { program, url } = config;
    let name = program.name();
    let asked = |path| async move {
        let failed = |source| ReadBackError::NotAsked { program: name, url: url.to_string(), source };
        asked::ask(url, path).await.map_err(failed)
    };
    let answer = asked(program.path()).await?;
    let (installed, compared) = (installed.to_vec(), program.clone());
    // Among many instances, reading the answer takes longer than everybody else should wait.
    let comparing = tokio::task::spawn_blocking(move || compared.compare(&installed, &answer));
    let difference = match comparing.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(Mismatch::Differs(difference))) => difference,
        Ok(Err(Mismatch::Installed(source))) => {
            return Err(ReadBackError::Unreadable { program: name, source });
        }
        Ok(Err(Mismatch::Answer(source))) => {
            let source = AskError::Nonsense(source);
            return Err(ReadBackError::NotAsked { program: name, url: url.to_string(), source });
        }
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    };
    // What is known besides only helps: whether it can be had changes nothing.
    let hint = match program {
        Program::Envoy => asked(envoy::STATS).await.ok().and_then(|stats| envoy::refusals(&stats)),
        Program::Traefik { .. } | Program::Prometheus { .. } => None,
    };
    let difference = hint.map_or(difference.clone(), |hint| format!("{difference} ({hint})"));
    Err(ReadBackError::Differs { program: name, difference })
}

impl Program {
    fn name(&self) -> &'static str {
        match self {
            Program::Envoy => "Envoy",
            Program::Traefik { .. } => "Traefik",
            Program::Prometheus { .. } => "Prometheus",
        }
    }

    /// What is asked for, below the program's address.
    fn path(&self) -> &'static str {
        match self {
            Program::Envoy => envoy::CLUSTERS,
            Program::Traefik { .. } => traefik::RAW,
            Program::Prometheus { .. } => prometheus::TARGETS,
        }
    }

    fn compare(&self, installed: &[u8], answer: &[u8]) -> Result<(), Mismatch> {
        match self {
            Program::Envoy => envoy::compare(installed, answer),
            Program::Traefik { others } => traefik::compare(installed, answer, *others),
            Program::Prometheus { job } => prometheus::compare(installed, answer, job.as_deref()),
        }
    }
}

#[cfg(test)]
mod tests;
