//! How long to wait before the next try: growing, jittered, bounded.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The delays between the tries of one thing. [`Retry::reset`] it when the thing has worked.
#[derive(Debug)]
pub struct Retry {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
}

impl Retry {
    /// Delays from `first`, each twice the one before, at most `longest`, with up to its own length
    /// of jitter on top.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .without_max_times()
            .with_jitter();
        Self { builder, delays: builder.build() }
    }

    /// How long to wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().expect("the number of tries is not bounded")
    }

    /// The thing has worked: the next delay is a first one.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}
