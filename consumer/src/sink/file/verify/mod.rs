//! What a file must prove itself by once its reader has it: a command, an HTTP request, or new workers of nginx. Where it
//! does not, the last file that did is put back.
//!
//! ```text
//! acked -> verifier -> passes: the file is the good one from now on
//!                   -> fails:  its content is remembered as bad; the next turn installs the good one in its place
//! ```

pub mod good;
pub mod http;
pub mod settings;
pub mod verifier;

pub use good::LastGood;
pub use settings::{Probe, RawVerify, Verify};
