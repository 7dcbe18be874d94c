//! Waiting for a condition: asked again and again until it holds, and a clear error when it never does.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The first pause between two tries; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// What a condition may answer: `false` and `None` mean "not yet".
pub trait Outcome {
    /// What the wait returns in the end.
    type Value;

    /// The value, once there is one.
    fn reached(self) -> Option<Self::Value>;
}

impl Outcome for bool {
    type Value = ();

    fn reached(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn reached(self) -> Option<T> {
        self
    }
}

/// Asks `condition` until it gives `true` or `Some`, for at most `deadline`; an error of it means "not yet"
/// too.
///
/// # Errors
/// The deadline passed; the message names `what` and carries the condition's last error, if its last try gave
/// one.
pub fn until<O: Outcome>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<O>,
) -> Result<O::Value> {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let last = match condition() {
            Ok(outcome) => match outcome.reached() {
                Some(value) => return Ok(value),
                None => None,
            },
            Err(error) => Some(error),
        };
        if begun.elapsed() >= deadline {
            match last {
                Some(error) => return Err(error.context(format!("waited {deadline:?} in vain until {what}"))),
                None => bail!("waited {deadline:?} in vain until {what}"),
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait_with_its_value() -> Result<()> {
        let mut tries = 0;
        let value = until("the third try", Duration::from_secs(5), || {
            tries += 1;
            if tries == 1 { Err(anyhow!("not at first")) } else { Ok((tries == 3).then_some(7)) }
        })?;
        assert_eq!((value, tries), (7, 3));
        Ok(())
    }

    #[test]
    fn a_wait_in_vain_says_for_what_and_why() {
        let error =
            until("pigs fly", Duration::from_millis(5), || -> Result<bool> { Err(anyhow!("no wings")) })
                .expect_err("it never holds");
        assert_eq!(format!("{error:#}"), "waited 5ms in vain until pigs fly: no wings");
    }
}
