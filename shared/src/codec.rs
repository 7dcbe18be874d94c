//! How records are stored: JSON objects with a version. Unknown fields are ignored; known ones are checked.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The largest value that is written or read, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 10;

/// A record of the store.
pub trait Value: Serialize + DeserializeOwned + std::fmt::Debug + PartialEq + Send + Sync + 'static {
    /// What kind of record it is, for messages.
    const WHAT: &'static str;

    /// What is wrong with a record that parses but that no writer of ours writes.
    fn flaw(&self) -> Option<&'static str> {
        None
    }
}

/// The version that every record bears as `"v": 1`. Reading any other fails, so that a record of a later format is
/// skipped and not misread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "u64")]
pub struct V1;

impl From<V1> for u64 {
    fn from(_: V1) -> u64 {
        1
    }
}

impl TryFrom<u64> for V1 {
    type Error = String;

    fn try_from(version: u64) -> Result<Self, String> {
        if version == 1 { Ok(V1) } else { Err(format!("version {version} is not known, expected 1")) }
    }
}

/// A value that is not a record of the expected kind.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// It is no such JSON.
    #[error("not a readable {what}")]
    Json {
        /// The expected kind.
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It parses, but no writer of ours writes it.
    #[error("not a valid {what}: {flaw}")]
    Flaw {
        /// The expected kind.
        what: &'static str,
        /// What is wrong with it.
        flaw: &'static str,
    },
}

/// Reads a record from the store's value.
///
/// # Errors
/// Any value that is not such a record.
pub fn decode<T: Value>(value: &[u8]) -> Result<T, CodecError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(CodecError::Flaw { what: T::WHAT, flaw: "it is larger than 64 KiB" });
    }
    let record: T =
        serde_json::from_slice(value).map_err(|source| CodecError::Json { what: T::WHAT, source })?;
    match record.flaw() {
        None => Ok(record),
        Some(flaw) => Err(CodecError::Flaw { what: T::WHAT, flaw }),
    }
}

/// Writes a record as the store's value.
pub fn encode<T: Value>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have text keys and cannot fail to serialize")
}

/// Whether a text fits on one line: it has no control character.
pub fn is_one_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
