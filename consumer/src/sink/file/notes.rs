//! What is said of a file beside that it is there: in the log, on /readyz and by `--dry-run`. Pure.

/// What is said of a file that is not as it was left, while it stays.
pub const CHANGED: &str = "someone else changed the file meanwhile";

/// What is said of a file that takes the place of one that has failed.
pub const BACK: &str = "the last good file is back";

/// What is said where host names stay that do not resolve.
pub const KEPT: &str = "no host name resolves here: kept as they were";

/// What is said of a file that nothing has matched yet.
pub fn unmatched(reason: &str) -> String {
    format!("nothing has matched yet, and it is not emptied without allow_empty: {reason}")
}

/// One line for what the format cannot express, and one where host names stay that do not resolve.
pub fn notes(left_out: &[String], keeps_hosts: bool) -> Vec<String> {
    note_left_out(left_out).into_iter().chain(keeps_hosts.then(|| KEPT.to_owned())).collect()
}

/// It names as many as an operator reads; `--dry-run` names all.
fn note_left_out(left_out: &[String]) -> Option<String> {
    const MAX_NAMED: usize = 20;
    let named = left_out.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = match left_out.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!left_out.is_empty()).then(|| format!("leaves out what the format cannot express: {named}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_named_and_of_much_the_rest_is_counted() {
        assert_eq!(notes(&[], true), [KEPT]);
        let two = notes(&["a".to_owned(), "b".to_owned()], false);
        assert_eq!(two, ["leaves out what the format cannot express: a; b"]);
        let many: Vec<_> = (0..22).map(|number| number.to_string()).collect();
        assert!(notes(&many, false)[0].ends_with("; 19 and 2 more"));
    }
}
