//! Which regular expressions nginx takes for certain.
//!
//! nginx refuses its whole configuration for one that PCRE cannot compile, so one is taken only if it keeps to what the
//! `regex` crate and PCRE have in common. Named groups are not taken: they set nginx's variables, also those of others.
//! Neither are back references, look-behinds and flags.

use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassPerlKind, ClassSet, ClassSetItem, GroupKind, LiteralKind, RepetitionKind,
    RepetitionRange,
};

/// The longest that is taken, in bytes.
const MAX_BYTES: usize = 253;
/// How many parts it may have once its repetitions are written out: PCRE's limit is 64 KiB, some 40 bytes for each.
const MAX_PARTS: u64 = 1000;

/// Why an expression is not taken.
pub(super) const EXPECTED: &str =
    "a regular expression of literals, classes, groups without names, alternatives and repetitions";

/// Whether nginx compiles the expression.
pub(super) fn is_safe(pattern: &str) -> bool {
    if pattern.len() > MAX_BYTES || !pattern.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return false;
    }
    if has_posix_syntax(pattern) {
        return false;
    }
    // A look-ahead may stand where a group may. The replacement changes nothing else's validity.
    let pattern = pattern.replace("(?!", "(?:").replace("(?=", "(?:");
    let parsed = ast::parse::Parser::new().parse(&pattern);
    parsed.is_ok_and(|ast| parts(&ast).is_some_and(|parts| parts <= MAX_PARTS))
}

/// PCRE takes `[:x:]`, `[.x.]` and `[=x=]` for POSIX's names, and refuses those that it does not know.
fn has_posix_syntax(pattern: &str) -> bool {
    pattern.match_indices('[').any(|(at, _)| is_posix_name(&pattern.as_bytes()[at + 1..]))
}

/// As PCRE tells such a name from other classes (its `check_posix_syntax`).
fn is_posix_name(text: &[u8]) -> bool {
    let Some((mark @ (b':' | b'.' | b'='), mut rest)) = text.split_first() else { return false };
    loop {
        match rest {
            [b'\\', b']' | b'\\', after @ ..] => rest = after,
            [end, b']', ..] if end == mark => return true,
            [b'[', begin, ..] if begin == mark => return false,
            [b']', ..] | [] => return false,
            [_, after @ ..] => rest = after,
        }
    }
}

/// How many parts an expression has; none if it is of a kind that is not taken.
fn parts(ast: &Ast) -> Option<u64> {
    match ast {
        Ast::Empty(_) | Ast::Dot(_) => Some(1),
        Ast::Literal(literal) => is_plain(&literal.kind).then_some(1),
        Ast::Assertion(assertion) => match assertion.kind {
            AssertionKind::StartLine
            | AssertionKind::EndLine
            | AssertionKind::WordBoundary
            | AssertionKind::NotWordBoundary => Some(1),
            _ => None,
        },
        Ast::ClassPerl(class) => Some(perl(&class.kind)),
        Ast::ClassBracketed(class) => match &class.kind {
            ClassSet::Item(item) => is_plain_item(item).then_some(1),
            ClassSet::BinaryOp(_) => None,
        },
        // PCRE repeats neither a place nor a repetition, for which it has other words.
        Ast::Repetition(repetition) if !is_repeatable(&repetition.ast) => None,
        Ast::Repetition(repetition) => {
            let times = match &repetition.op.kind {
                RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => 1,
                RepetitionKind::Range(range) => match range {
                    RepetitionRange::Exactly(times) | RepetitionRange::AtLeast(times) => *times,
                    RepetitionRange::Bounded(_, times) => *times,
                },
            };
            parts(&repetition.ast)?.checked_mul(u64::from(times).max(1))?.checked_add(1)
        }
        Ast::Group(group) => match &group.kind {
            GroupKind::CaptureIndex(_) => parts(&group.ast)?.checked_add(2),
            GroupKind::NonCapturing(flags) if flags.items.is_empty() => parts(&group.ast)?.checked_add(2),
            GroupKind::CaptureName { .. } | GroupKind::NonCapturing(_) => None,
        },
        Ast::Alternation(alternation) => sum(&alternation.asts),
        Ast::Concat(concat) => sum(&concat.asts),
        Ast::Flags(_) | Ast::ClassUnicode(_) => None,
    }
}

fn is_repeatable(ast: &Ast) -> bool {
    match ast {
        Ast::Literal(_) | Ast::Dot(_) | Ast::ClassPerl(_) | Ast::ClassBracketed(_) | Ast::Group(_) => true,
        Ast::Empty(_)
        | Ast::Flags(_)
        | Ast::Assertion(_)
        | Ast::ClassUnicode(_)
        | Ast::Repetition(_)
        | Ast::Alternation(_)
        | Ast::Concat(_) => false,
    }
}

fn sum(asts: &[Ast]) -> Option<u64> {
    asts.iter().try_fold(1u64, |sum, ast| sum.checked_add(parts(ast)?))
}

fn perl(kind: &ClassPerlKind) -> u64 {
    match kind {
        ClassPerlKind::Digit | ClassPerlKind::Space | ClassPerlKind::Word => 1,
    }
}

fn is_plain(kind: &LiteralKind) -> bool {
    matches!(kind, LiteralKind::Verbatim | LiteralKind::Meta | LiteralKind::Superfluous)
}

fn is_plain_item(item: &ClassSetItem) -> bool {
    match item {
        ClassSetItem::Literal(literal) => is_plain(&literal.kind),
        ClassSetItem::Range(range) => is_plain(&range.start.kind) && is_plain(&range.end.kind),
        ClassSetItem::Perl(_) => true,
        ClassSetItem::Union(union) => union.items.iter().all(is_plain_item),
        ClassSetItem::Empty(_)
        | ClassSetItem::Ascii(_)
        | ClassSetItem::Unicode(_)
        | ClassSetItem::Bracketed(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_both_engines_have_in_common_is_taken() {
        for good in [
            "^www\\d+\\.example\\.com$",
            "^(foo|bar)[.]example[.]com$",
            "^(?!www\\.)[a-z0-9-]+\\.example\\.com$",
            "^/(app1|alternative1)/",
            "^a{2,3}(?:b+?)?\\w*$",
            "^[^.]+\\.x$",
            "",
        ] {
            assert!(is_safe(good), "{good} was refused");
        }
        for bad in [
            "^(a",
            "[a",
            "a{3,2}",
            "*a",
            "^*",
            "a**",
            "a*+",
            "^(?<host>.*)$",
            "^(?P<host>.*)$",
            "(?i)a",
            "(?i:a)",
            "(?R)",
            "a\\x{110000}",
            "\\x{1000}",
            "\\p{Greek}",
            "\\<a",
            "[[:alpha:]]",
            "[:alpha:]",
            "[..]",
            "[=a=]",
            "[.a\\].]",
            "[a&&b]",
            "[\\w-a]",
            "a\\1",
            "(?<=a)b",
            "\u{e4}",
            "a\nb",
            "((a{100}){100}){100}",
            &"a".repeat(254),
        ] {
            assert!(!is_safe(bad), "{bad} was taken");
        }
    }
}
