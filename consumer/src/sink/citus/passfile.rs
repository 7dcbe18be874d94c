//! The file of passwords that libpq reads, `~/.pgpass`: which line is meant, and when the file is not read.
//!
//! The format is PostgreSQL's: "The Password File" in its chapter on libpq.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The password.
    Password(String),
    /// Nothing, and what its user may want to know of that, on one line.
    Nothing(Option<String>),
}

/// Who is to be let in where.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'e> {
    /// The host as it is given: `localhost` for a socket in the default folder.
    pub host: &'e str,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: &'e str,
    /// The user.
    pub user: &'e str,
}

/// Looks the password up. As libpq does, it does not read a file that others than its owner may read.
pub fn look_up(path: &Path, entry: Entry<'_>) -> Found {
    let Ok(metadata) = fs::metadata(path) else { return Found::Nothing(None) };
    let not_read = |why: &str| Found::Nothing(Some(format!("password file {} {why}", path.display())));
    if !metadata.is_file() {
        return not_read("is no plain file, so it is not read");
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return not_read(&format!("has mode {mode:04o}, so it is not read: expected 0600 or less"));
    }
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return not_read(&format!("cannot be read: {error}")),
    };
    match text.lines().find_map(|line| password(line, entry)) {
        Some(password) => Found::Password(password),
        None => not_read(&format!(
            "has no line for {}:{}:{}:{}",
            entry.host, entry.port, entry.database, entry.user
        )),
    }
}

/// The password of a line, if the line is about this entry.
fn password(line: &str, entry: Entry<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let port = entry.port.to_string();
    let mut rest = line;
    for expected in [entry.host, &port, entry.database, entry.user] {
        let (field, is_star, after) = field(rest)?;
        if !is_star && field != expected {
            return None;
        }
        rest = after;
    }
    Some(unescape(rest))
}

/// The field at the start of a line, whether it is a bare `*`, and what follows its colon.
fn field(line: &str) -> Option<(String, bool, &str)> {
    let mut is_escaped = false;
    let end = line.find(|c: char| {
        let is_end = c == ':' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    })?;
    Some((unescape(&line[..end]), &line[..end] == "*", &line[end + 1..]))
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry<'_> = Entry { host: "::1", port: 5432, database: "app", user: "me" };

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pgpass");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        (dir, path)
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        for (line, expected) in [
            (r"\:\:1:5432:app:me:se\:cr\\et", Some(r"se:cr\et")),
            ("*:*:*:*:a:b", Some("a:b")),
            (r"\*:*:*:*:secret", None),
            ("::1:5432:app:me:secret", None),
            (r"\:\:1:5433:app:me:secret", None),
            (r"\:\:1:5432:app:you:secret", None),
            ("#*:*:*:*:secret", None),
            ("*:*:*:me", None),
        ] {
            assert_eq!(password(line, ENTRY).as_deref(), expected, "{line}");
        }
        let (_dir, path) = file("x:*:*:*:no\n*:*:app:*:yes\n*:*:*:*:late\n", 0o600);
        assert_eq!(look_up(&path, ENTRY), Found::Password("yes".to_owned()));
    }

    #[test]
    fn a_file_that_others_may_read_is_not_read_and_that_is_said() {
        let (_dir, path) = file("*:*:*:*:secret\n", 0o640);
        let Found::Nothing(Some(why)) = look_up(&path, ENTRY) else { panic!("it is not read") };
        assert!(why.ends_with("has mode 0640, so it is not read: expected 0600 or less"), "{why}");
    }

    #[test]
    fn a_file_without_the_line_is_named_and_one_that_is_absent_is_not() {
        let (_dir, path) = file("x:*:*:*:no\n", 0o600);
        let Found::Nothing(Some(why)) = look_up(&path, ENTRY) else { panic!("no line fits") };
        assert!(why.ends_with("has no line for ::1:5432:app:me"), "{why}");
        assert_eq!(look_up(&path.join("none"), ENTRY), Found::Nothing(None));
    }
}
