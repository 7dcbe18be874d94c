//! How records stand in the store: JSON objects with a version, read leniently in what is new and
//! strictly in what is known.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version every record bears as `"v": 1`. Reading any other fails, so that a record of a
/// later format is skipped instead of misread.
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
#[error("not a readable {what}: {reason}")]
pub struct WireError {
    what: &'static str,
    reason: String,
}

impl WireError {
    /// A value that parses, but says what no writer of ours says.
    pub fn new(what: &'static str, reason: impl Into<String>) -> Self {
        Self { what, reason: reason.into() }
    }
}

/// Reads a record from the JSON that the store holds.
pub fn decode<T: DeserializeOwned>(what: &'static str, value: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(value).map_err(|error| WireError::new(what, error.to_string()))
}

/// Writes a record as the JSON that the store holds.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have text keys and cannot fail to serialize")
}

/// Whether a text can stand on one line: it has no control character.
pub fn is_one_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
