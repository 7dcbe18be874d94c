//! Says once a day which of the certificates on disk end soon.

use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use x509_parser::pem::Pem;

use crate::store::settings::EtcdSettings;

/// How long before its end a certificate is named.
const NOTICE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often.
const INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Looks at the certificates once a day.
#[derive(Debug, Default)]
pub(super) struct Certificates(Mutex<Option<Instant>>);

impl Certificates {
    /// Names the certificates that end soon, if it is time to.
    pub(super) fn look(&self, settings: EtcdSettings) {
        let now = Instant::now();
        {
            let mut looked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|looked| now < looked + INTERVAL) {
                return;
            }
            *looked = Some(now);
        }
        tokio::task::spawn_blocking(move || {
            for file in settings.certificates() {
                for end in ending(file, Timestamp::now()) {
                    tracing::warn!(file = %file.display(), ends = %end, "a certificate ends within a month");
                }
            }
        });
    }
}

/// When the certificates of a file end that do so soon. A file that cannot be read is reported where it is used.
fn ending(file: &Path, now: Timestamp) -> Vec<Timestamp> {
    let pem = fs::read(file).unwrap_or_default();
    let certificates = Pem::iter_from_buffer(&pem).filter_map(Result::ok);
    let ends = certificates.filter_map(|pem| {
        let end = pem.parse_x509().ok()?.validity().not_after.timestamp();
        Timestamp::from_second(end).ok()
    });
    ends.filter(|end| end.duration_since(now) < NOTICE).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_is_named_in_the_month_before_its_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("cert.pem");
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2036, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        fs::write(&file, certificate.pem()).expect("a file");
        let end: Timestamp = "2036-01-01T00:00:00Z".parse().expect("a time");
        for (days, expected) in [(31, vec![]), (29, vec![end]), (-1, vec![end])] {
            let now = end - SignedDuration::from_hours(24 * days);
            assert_eq!(ending(&file, now), expected, "{days} days before");
        }
        assert!(ending(&dir.path().join("none"), end).is_empty());
    }
}
