//! Whom a file belongs to and who may read it, as settings name them.
//!
//! Names are looked up in /etc/passwd and /etc/group themselves: the static binaries of the images cannot
//! load the C library's other sources of names.

use std::{fs, path::Path, str::FromStr};

/// A file's permission bits, in octal as chmod takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
            .ok()
            .filter(|mode| *mode <= 0o7777 && text.len() >= 3)
            .map(Mode)
            .ok_or_else(|| {
                format!("{text:?} is not a mode: expected three or four octal digits, such as 0644")
            })
    }
}

/// A user and a group, by number; where one is absent, it stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Option<u32>,
    /// The group.
    pub group: Option<u32>,
}

impl FromStr for Owner {
    type Err = String;

    /// Takes `user`, `user:group` or `:group`, each by name or number. A user by name brings its own group.
    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() && group.is_none_or(str::is_empty) {
            return Err("expected user, user:group or :group".to_owned());
        }
        let (user, own_group) = match user {
            "" => (None, None),
            user => look_up("user", Path::new("/etc/passwd"), user).map(|(id, group)| (Some(id), group))?,
        };
        let group = match group {
            Some("") | None => own_group,
            Some(group) => Some(look_up("group", Path::new("/etc/group"), group)?.0),
        };
        Ok(Self { user, group })
    }
}

/// The number of a name, and the number that follows it: a user's group.
fn look_up(what: &str, file: &Path, name: &str) -> Result<(u32, Option<u32>), String> {
    if let Ok(number) = name.parse() {
        return Ok((number, None));
    }
    let table = fs::read_to_string(file).unwrap_or_default();
    let fields = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.first() == Some(&name))
        .find_map(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3).and_then(|id| id.parse().ok()))))
        .ok_or_else(|| format!("{name:?} is not a {what} in {}: expected a name or a number", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_by_name_and_number() {
        let owner = |user, group| Ok(Owner { user, group });
        assert_eq!("root".parse(), owner(Some(0), Some(0)));
        assert_eq!("101:102".parse(), owner(Some(101), Some(102)));
        assert_eq!("101".parse(), owner(Some(101), None));
        assert_eq!(":root".parse(), owner(None, Some(0)));
        for bad in ["", ":", "no-such-user-here", "root:no-such-group-here"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!("0644".parse(), Ok(Mode(0o644)));
        assert_eq!("0o600".parse(), Ok(Mode(0o600)));
        for bad in ["", "4", "648", "17777", "rw-r--r--"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad:?} was taken");
        }
    }
}
