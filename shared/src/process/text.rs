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

/// Leaves no more of a text than its beginning of so many bytes.
pub fn shorten(text: &mut String, max_bytes: usize) {
    let end = (0..=max_bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shortened_between_characters() {
        for (max, expected) in [(9, "aé€"), (6, "aé€"), (5, "aé"), (2, "a"), (0, "")] {
            let mut text = "aé€".to_owned();
            shorten(&mut text, max);
            assert_eq!(text, expected, "{max}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_written_out_and_the_rest_stays() {
        assert_eq!(escaped("a \"b\" c:\\d é"), "a \"b\" c:\\d é");
        assert_eq!(escaped("a\nb\u{1b}[31m\u{202e}"), "a\\nb\\u{1b}[31m\\u{202e}");
    }
}
