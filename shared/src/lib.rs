//! What both sides speak.
