//! What the worker does where a target's file is verified: it keeps the last good content, and puts that in the place of
//! one that has failed.

use tokio::time::Instant;

use super::{BACK, Current, Draft, FileError, Made, Worker, digest};
use crate::{
    sink::{
        Applied,
        file::{install::Contents, nginx::Workers},
    },
    target::state::Digest,
};

impl Worker {
    /// What to install for what was rendered, and why it is another, if it is: in the place of a content that has failed,
    /// the last good one, or else what is there.
    pub(super) fn last_good(&self, rendered: Contents) -> Result<(Contents, Option<String>), FileError> {
        let Some(good) = &self.good else { return Ok((rendered, None)) };
        let Some(reason) = good.refusal(&digest(&rendered)) else { return Ok((rendered, None)) };
        let (bytes, what) = match (good.bytes(), self.files.installed()?) {
            (Some(bytes), _) => (bytes, BACK),
            (None, Some(bytes)) => (bytes, "there is no good file to go back to"),
            (None, None) => return Ok((rendered, None)),
        };
        Ok((Contents::One(bytes), Some(format!("{reason}; {what}"))))
    }

    /// Puts the last good content back in the place of one that has failed, while nothing else may replace it.
    pub(super) fn put_back(&mut self, held: &str, until: Option<Instant>) -> Result<Option<Made>, FileError> {
        let failed = self.current.as_ref().filter(|current| self.is_in_doubt(current));
        let Some(Current { digest: Some(digest), instances, .. }) = failed else { return Ok(None) };
        let Some((reason, bytes)) =
            self.good.as_ref().and_then(|good| Some((good.refusal(digest)?, good.bytes()?)))
        else {
            return Ok(None);
        };
        let draft = Draft {
            digest: Some(Digest::of(&bytes)),
            instances: *instances,
            held: vec![held.to_owned()],
            refusal: Some(format!("{reason}; {BACK}")),
            notes: vec![],
            started: vec![],
            look_again: until,
            step: self.shown,
        };
        let staged = self.files.stage(&Contents::One(bytes))?;
        if staged.is_done() {
            return Ok(None);
        }
        Ok(Some(Made::Done(Applied::Written(self.install(draft, staged)?))))
    }

    /// Whether the content that is there has failed, and nothing was done about that yet.
    pub(super) fn is_in_doubt(&self, current: &Current) -> bool {
        let has_failed =
            |digest: &Digest| self.good.as_ref().is_some_and(|good| good.refusal(digest).is_some());
        current.refusal.is_none() && current.digest.as_ref().is_some_and(has_failed)
    }

    /// Keeps what is there before the first file that is to be verified: its reader runs with that.
    pub(super) fn keep_first(&mut self) -> Result<(), FileError> {
        if let Some(good) = self.good.as_mut().filter(|good| good.is_none())
            && let Some(bytes) = self.files.installed()?
            && good.refusal(&Digest::of(&bytes)).is_none()
        {
            // The state folder reports an error; there is nothing to go back to then.
            let _ = good.keep(&bytes);
        }
        Ok(())
    }

    /// Whether the content that is there is to be verified.
    pub fn is_to_be_verified(&self) -> bool {
        let digest = self.current.as_ref().and_then(|current| current.digest.as_ref());
        let good = self.good.as_ref().zip(digest);
        good.is_some_and(|(good, digest)| !good.is_known(digest))
    }

    /// nginx's workers when the content was installed that is there, where they verify it.
    pub fn workers_before(&self) -> Option<Workers> {
        self.before.clone()
    }

    /// Takes what became of verifying the content that is there; a reason says why it failed. The state folder reports
    /// what cannot be remembered.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn on_verified(&mut self, failure: Option<String>) -> Result<(), FileError> {
        let Some(digest) = self.current.as_ref().and_then(|current| current.digest.clone()) else {
            return Ok(());
        };
        let Some(good) = &mut self.good else { return Ok(()) };
        match failure {
            Some(reason) => drop(good.refuse(digest, reason)),
            None => {
                let bytes = self.files.installed()?.filter(|bytes| Digest::of(bytes) == digest);
                if let Some(bytes) = bytes {
                    drop(good.keep(&bytes));
                }
            }
        }
        Ok(())
    }
}
