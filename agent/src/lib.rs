//! Placeholder until its first stage stands.
