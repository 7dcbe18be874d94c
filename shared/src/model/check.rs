//! Checks in containers: how a consumer has a staged file checked by the program that will read it, on any node.
//!
//! A consumer says in its record in which containers a target's files are checked. Each agent answers, among its
//! receivers, with the checkers: those of its own containers that are meant. The consumer then writes a request to a
//! checker's node, and the agent there runs the command in the container and writes the verdict.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{selector::Selector, signal::Incarnation};
use crate::codec::{V1, Value};

/// Stands for the staged file, as a word of a command.
pub const FILE: &str = "{file}";
/// Stands for where the file goes, as a word of a command.
pub const DEST: &str = "{dest}";
/// What the name of a staged file has between the file's own name and the random rest.
pub const STAGED: &str = ".rollcall-";

/// In which containers a target's files are checked, and by which command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRule {
    /// The containers.
    pub to: Selector,
    /// The command's words; [`FILE`] and [`DEST`] stand for paths.
    pub command: Vec<String>,
}

/// A consumer's request to have a file checked in some containers of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The format's version.
    pub v: V1,
    /// Which check this is: each has a number of its own. Compared for equality only.
    pub id: u64,
    /// The command's words; [`FILE`] and [`DEST`] stand for the paths below.
    pub command: Vec<String>,
    /// Where the file is staged, as the container sees it: in the folder of `dest`, by a name that says whose it is.
    pub file: String,
    /// Where it goes, as the container sees it.
    pub dest: String,
    /// How long the command may take, in milliseconds.
    pub timeout_ms: u64,
    /// In which containers, and which runs of them.
    pub checkers: Vec<Incarnation>,
}

impl CheckRequest {
    /// How long the command may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// The words to run, of which the first is the program.
    pub fn words(&self) -> Vec<String> {
        let word = |word: &String| match word.as_str() {
            FILE => self.file.clone(),
            DEST => self.dest.clone(),
            word => word.to_owned(),
        };
        self.command.iter().map(word).collect()
    }
}

/// A node's verdicts on a target's files, the latest of each container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// The format's version.
    pub v: V1,
    /// The verdicts, in the order of their incarnations.
    pub verdicts: Vec<Verdict>,
}

/// What became of a check in one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which container, and which run of it.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// The request that is answered.
    pub id: u64,
    /// What became of it.
    pub outcome: CheckOutcome,
    /// When, by the node's clock.
    pub at: Timestamp,
}

/// How a check has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// The command has ended, with this exit code.
    Ended {
        /// 0 where the file is good.
        exit_code: i64,
        /// The beginning of what it printed, of its errors if there are any: at most [`MAX_SAID_BYTES`], and control
        /// characters written out.
        said: String,
    },
    /// The container does not see the staged file.
    Unseen,
    /// The command is not allowed, or could not be run to its end, and why.
    NotRun(String),
}

/// How much of a command's output a verdict has, in bytes.
pub const MAX_SAID_BYTES: usize = 4096;

impl Value for CheckRequest {
    const WHAT: &'static str = "check request";
}

impl Value for Verdicts {
    const WHAT: &'static str = "list of verdicts";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_takes_the_place_of_a_whole_word_only() {
        let request = CheckRequest {
            v: V1,
            id: 1,
            command: ["nginx", "-t", "--as={file}", FILE, DEST].map(str::to_owned).to_vec(),
            file: "/c/.a.rollcall-1".to_owned(),
            dest: "/c/a; rm".to_owned(),
            timeout_ms: 1,
            checkers: vec![],
        };
        assert_eq!(request.words(), ["nginx", "-t", "--as={file}", "/c/.a.rollcall-1", "/c/a; rm"]);
    }
}
