//! Samples of a time, and how they are printed.

use std::time::Duration;

/// Times of one thing, measured again and again.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    samples: Vec<Duration>,
}

impl Figures {
    /// One more.
    pub fn add(&mut self, sample: Duration) {
        self.samples.push(sample);
    }

    /// The time that `share` of the samples do not exceed, in ms.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut samples = self.samples.clone();
        samples.sort_unstable();
        let index = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
        samples.get(index).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
    }

    /// The median, in ms.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Prints a line: the median, the 95th percentile, and the ratio to a floor in ms where there is one.
    pub fn print(&self, what: &str, floor: Option<f64>) {
        let (median, high, count) = (self.median(), self.quantile(0.95), self.samples.len());
        match floor {
            Some(floor) => {
                println!(
                    "  {what:<44} {median:8.2} {high:8.2}   {:5.2}x of {floor:.2}  (n={count})",
                    median / floor
                );
            }
            None => println!("  {what:<44} {median:8.2} {high:8.2}   (n={count})"),
        }
    }
}

/// Prints the heading of a table of figures.
pub fn heading(title: &str) {
    println!("\n{title:<46} {:>8} {:>8}   (ms)", "median", "95th");
}
