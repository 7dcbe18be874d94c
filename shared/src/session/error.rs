//! Why a name cannot be kept.

use crate::{codec, model::claim::Claim};

/// Why a name cannot be kept. None of it is worth a retry before someone has acted.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The name belongs to another owner, whose lease lives.
    #[error(
        "the {what} name {name} is held by {} on {}, since {}, and this is {owner}: expected a name of its own, by {flag}",
        holder.owner, holder.host, holder.started_at
    )]
    Refused {
        /// What kind of name.
        what: &'static str,
        /// The flag that gives another name.
        flag: &'static str,
        /// The name.
        name: String,
        /// Who holds it.
        holder: Box<Claim>,
        /// Who asked.
        owner: String,
    },
    /// Another process of the same owner holds the name, and has answered that it lives.
    #[error(
        "the {what} name {name} is held by another process of {} that runs on {}, since {}: expected one process, or \
         a name of its own, by {flag}",
        holder.owner, holder.host, holder.started_at
    )]
    Twin {
        /// What kind of name.
        what: &'static str,
        /// The flag that gives another name.
        flag: &'static str,
        /// The name.
        name: String,
        /// The process that holds it.
        holder: Box<Claim>,
    },
    /// Another process of the same owner has taken the claim over while this one did not answer.
    #[error("another process, on {}, has taken the {what} name {name} over", holder.host)]
    TakenOver {
        /// What kind of name.
        what: &'static str,
        /// The name.
        name: String,
        /// The process that holds it now.
        holder: Box<Claim>,
    },
    /// The name has a record that cannot be read, so nobody knows who holds it.
    #[error(
        "the {what} name {name} has a record that cannot be read: expected it to be removed, or another name, by {flag}"
    )]
    Unreadable {
        /// What kind of name.
        what: &'static str,
        /// The flag that gives another name.
        flag: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        source: codec::CodecError,
    },
}
