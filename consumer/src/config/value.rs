//! Values of the TOML, parsed as they are read, so that an error has its line.

use std::{fmt, marker::PhantomData, str::FromStr, time::Duration};

use regex::Regex;
use rollcall_shared::{cli, instance::Status};
use serde::{
    Deserialize, Deserializer,
    de::{self, Error as _, SeqAccess, Visitor},
};

use crate::command::CommandLine;

/// A status by its name.
pub(super) struct StatusName(pub(super) Status);

impl FromStr for StatusName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Status::ALL.into_iter().find(|status| status.as_str() == text).map(StatusName).ok_or_else(|| {
            let known = Status::ALL.map(Status::as_str).join(", ");
            format!("{text:?} is not a status: expected one of {known}")
        })
    }
}

pub(super) fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Regex>, D::Error> {
    cli::regex(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

pub(super) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    let time = humantime::parse_duration(&text);
    time.map(Some)
        .map_err(|_| D::Error::custom(format!("{text:?} is not a time: expected one such as 20ms or 1m")))
}

pub(super) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

pub(super) fn command<'de, D: Deserializer<'de>>(from: D) -> Result<Option<CommandLine>, D::Error> {
    /// One text is split into words, a list is words already.
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = CommandLine;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a command, or a list of its words")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<CommandLine, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CommandLine, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = seq.next_element()? {
                words.push(word);
            }
            CommandLine::from_words(words).map_err(A::Error::custom)
        }
    }
    from.deserialize_any(Words).map(Some)
}

pub(super) fn one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    struct Values<T>(PhantomData<T>);
    impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for Values<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one value, or a list of them")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            text.parse().map(|value| vec![value]).map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
            self.visit_str(&number.to_string()).map_err(|error: E| E::custom(format!("{number}: {error}")))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(One(mut one)) = seq.next_element::<One<T>>()? {
                values.append(&mut one);
            }
            Ok(values)
        }
    }
    struct One<T>(Vec<T>);
    impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for One<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            one_or_many(from).map(One)
        }
    }
    from.deserialize_any(Values(PhantomData))
}
