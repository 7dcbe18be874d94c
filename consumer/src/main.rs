//! The consumer binary.
fn main() {}
