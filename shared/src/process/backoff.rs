//! How long to wait before the next try: growing, jittered, bounded.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The delays between the tries of one thing.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
}

impl Backoff {
    /// Delays from `first`, each twice the one before, at most `max`, with up to its own length of jitter on top.
    pub fn new(first: Duration, max: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(max)
            .without_max_times()
            .with_jitter();
        Self { builder, delays: builder.build() }
    }

    /// How long to wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().expect("the number of tries is not bounded")
    }

    /// To be called when the thing has worked: the next delay is a first one.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}
