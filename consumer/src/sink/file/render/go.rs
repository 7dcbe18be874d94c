//! Tells templates of docker-gen, confd and consul-template, which are in Go's language, from ours: some of theirs can be
//! parsed as Jinja, and would fail later, with a word that helps nobody.

/// The line of the first tag that only a Go template has, if there is one. Where a template has raw text, its tags may be
/// that text's.
pub fn line_of_tag(source: &str) -> Option<usize> {
    if source.contains("{% raw") || source.contains("{%- raw") {
        return None;
    }
    let is_go = |line: &str| line.split("{{").skip(1).any(is_go_tag);
    source.lines().position(is_go).map(|before| before + 1)
}

fn is_go_tag(tag: &str) -> bool {
    let tag = tag.trim_start_matches('-').trim_start();
    let (word, rest) = tag.split_once(|c: char| c.is_whitespace() || c == '}').unwrap_or((tag, ""));
    match word {
        "end" | "else" => true,
        "range" | "if" | "with" | "define" | "template" => {
            rest.trim_start().starts_with(['.', '$', '"', '('])
        }
        word => word.starts_with(['.', '$']),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_template_is_told_from_others() {
        for (source, expected) in [
            ("x\n{{ range .Containers }}x{{ end }}", Some(2)),
            ("{{range $i, $c := .}}x", Some(1)),
            ("{{ .Foo }}", Some(1)),
            ("{{- if (index . 0) }}x", Some(1)),
            ("x{{- end }}", Some(1)),
            ("{{ template \"upstream\" . }}", Some(1)),
            ("{% for template in services %}{{ template }}{% endfor %}", None),
            ("{{ range(3) }}{{ target.name }}", None),
            ("{% raw %}{{ .Foo }}{% endraw %}", None),
            ("no tag at all", None),
        ] {
            assert_eq!(line_of_tag(source), expected, "{source}");
        }
    }
}
