//! Texts of strangers in what people read.

/// The text on one line, with control characters and others that cannot be seen as Rust writes them: a label cannot
/// forge a line, nor colour one.
pub fn escaped(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_out_and_the_rest_stays() {
        assert_eq!(escaped("a \"b\" c:\\d é"), "a \"b\" c:\\d é");
        assert_eq!(escaped("a\nb\u{1b}[31m\u{202e}"), "a\\nb\\u{1b}[31m\\u{202e}");
    }
}
