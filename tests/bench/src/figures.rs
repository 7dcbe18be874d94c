//! Samples of a time, and how they are printed.

use std::time::Duration;

/// Samples of one time.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    samples: Vec<Duration>,
}

impl Figures {
    /// Adds a sample.
    pub fn add(&mut self, sample: Duration) {
        self.samples.push(sample);
    }

    /// The time that `share` of the samples do not exceed, in ms; not a number where there is no sample.
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

    /// The median, in ms; zero where there is no sample.
    pub fn median_or_zero(&self) -> f64 {
        if self.samples.is_empty() { 0.0 } else { self.median() }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Prints the median, the 95th percentile, and the ratio of the median to a floor in ms, if there is one.
    pub fn print(&self, what: &str, floor: Option<f64>) {
        let (median, high, count) = (self.median(), self.quantile(0.95), self.samples.len());
        match floor {
            Some(floor) => {
                let ratio = median / floor;
                println!("  {what:<44} {median:8.2} {high:8.2}   {ratio:5.2}x of {floor:.2}  (n={count})");
            }
            None => println!("  {what:<44} {median:8.2} {high:8.2}   (n={count})"),
        }
    }
}

impl FromIterator<Duration> for Figures {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        Self { samples: samples.into_iter().collect() }
    }
}

/// Prints the heading of a table of figures.
pub fn heading(title: &str) {
    println!("\n{title:<46} {:>8} {:>8}   (ms)", "median", "95th");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_sample_that_the_share_does_not_exceed() {
        let figures: Figures = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!((figures.median(), figures.quantile(0.95), figures.quantile(1.0)), (10.0, 19.0, 20.0));
        assert!(Figures::default().median().is_nan());
    }
}
