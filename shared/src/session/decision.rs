//! What to do about the record that is found where a claim is to be. Pure; the table on [`super`] is the protocol.

use crate::{
    model::claim::{Claim, Presence},
    store::{LeaseId, Revision},
};

/// Whether this process has held the claim before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenure {
    /// It has not.
    New,
    /// It has, in this history of the store.
    Held,
    /// It has, and then the store went back: what is found there is older than that.
    HeldBeforeRestore,
}

/// What to do about the record that is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Put our record, under a lease of ours.
    Claim,
    /// Put our record, under the lease of the record that is there.
    Adopt(LeaseId),
    /// Ask the holder whether it lives.
    Challenge(LeaseId),
    /// Wait for its answer.
    Wait,
    /// Wait until the lease of the record that is there has ended: nobody keeps it any more.
    WaitForLease,
    /// The name is another owner's.
    Refuse,
    /// The name is held by another process of ours that lives.
    RefuseTwin,
    /// Another process of ours has taken the name over.
    GiveUp,
}

/// Decides what to do about the record that is found. `asked` is the revision of our challenge, and whether its time is
/// over.
pub(super) fn decide(
    found: Option<(&Claim, Option<LeaseId>, Revision)>,
    ours: &Claim,
    asked: Option<(Revision, bool)>,
    tenure: Tenure,
) -> Step {
    let Some((claim, lease, revision)) = found else { return Step::Claim };
    if claim.owner != ours.owner {
        let is_left_over = tenure == Tenure::HeldBeforeRestore && lease.is_some();
        return if is_left_over { Step::WaitForLease } else { Step::Refuse };
    }
    if claim.holder == ours.holder {
        return lease.map_or(Step::Claim, Step::Adopt);
    }
    let adopt = |lease| if claim.ttl_seconds == ours.ttl_seconds { Step::Adopt(lease) } else { Step::Claim };
    match (tenure, claim.presence, lease, asked) {
        (Tenure::Held, ..) => Step::GiveUp,
        // We have succeeded that process once already.
        (Tenure::HeldBeforeRestore, _, lease, _) => lease.map_or(Step::Claim, adopt),
        (_, Presence::Leaving, _, _) | (_, _, None, _) => Step::Claim,
        (_, Presence::Left, Some(lease), _) => adopt(lease),
        (_, Presence::Present, Some(lease), None) => Step::Challenge(lease),
        (_, Presence::Present, Some(_), Some((asked, _))) if revision > asked => Step::RefuseTwin,
        (_, Presence::Present, Some(lease), Some((_, true))) => adopt(lease),
        (_, Presence::Present, Some(_), Some((_, false))) => Step::Wait,
    }
}
