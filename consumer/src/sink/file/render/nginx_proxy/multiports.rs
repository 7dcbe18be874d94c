//! `VIRTUAL_HOST_MULTIPORTS`: several ports of one container, by host and path. It is read as JSON, which is the form
//! of it that has one line; agents let no others out.

use std::collections::BTreeMap;

use serde_json::Value;

/// A place where a container serves, as it is written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PlaceText {
    pub hosts: String,
    pub port: Option<String>,
    pub path: Option<String>,
    pub dest: Option<String>,
    pub proto: Option<String>,
}

/// What was expected.
pub(super) const EXPECTED: &str = "JSON such as {\"HOST\": {\"/PATH\": {\"port\": 80}}}";

/// The places that the text has, if it can be read. What is no path beside the paths is for nginx-proxy alone.
pub(super) fn parse(text: &str) -> Option<Vec<PlaceText>> {
    let hosts: BTreeMap<String, Option<BTreeMap<String, Value>>> = serde_json::from_str(text).ok()?;
    let mut places = vec![];
    for (host, paths) in hosts {
        let paths = paths.unwrap_or_default();
        if paths.is_empty() {
            places.push(PlaceText { hosts: host.clone(), ..PlaceText::default() });
        }
        for (path, value) in paths.into_iter().filter(|(path, _)| path.starts_with('/')) {
            places.push(place(&host, path, value)?);
        }
    }
    Some(places)
}

fn place(host: &str, path: String, value: Value) -> Option<PlaceText> {
    let settings = match value {
        Value::Null => serde_json::Map::new(),
        Value::Object(settings) => settings,
        _ => return None,
    };
    let text = |name: &str| match settings.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(Value::Number(number)) => Some(Some(number.to_string())),
        Some(_) => None,
    };
    let (port, dest, proto) = (text("port")?, text("dest")?, text("proto")?);
    Some(PlaceText { hosts: host.to_owned(), port, path: Some(path), dest, proto })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_paths_are_read_and_what_is_no_json_is_not() {
        let places = parse(
            r#"{"a": {"/": {"port": 8000}, "/x": {"port": "9000", "dest": "/", "proto": "https"}, "external_http_port": 1},
                "b": {}, "c": null, "d": {"/": null}}"#,
        );
        let place = |hosts: &str, path: Option<&str>, port: Option<&str>| PlaceText {
            hosts: hosts.to_owned(),
            path: path.map(str::to_owned),
            port: port.map(str::to_owned),
            ..PlaceText::default()
        };
        let (dest, proto) = (Some("/".to_owned()), Some("https".to_owned()));
        let expected = vec![
            place("a", Some("/"), Some("8000")),
            PlaceText { dest, proto, ..place("a", Some("/x"), Some("9000")) },
            place("b", None, None),
            place("c", None, None),
            place("d", Some("/"), None),
        ];
        assert_eq!(places, Some(expected));
        for bad in ["a: {}", "[]", "{\"a\": 1}", "{\"a\": {\"/\": []}}", "{\"a\": {\"/\": {\"port\": []}}}"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
