//! The commands that docs/moving-over.md tells users to run, for the tests that run them.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::tool;

/// The blocks of code in a section of the page from its first "Now" on; a line that ends in a backslash goes on.
///
/// # Errors
/// There is no such section, or it has no such block.
pub fn now(section: &str) -> Result<Vec<String>> {
    let page = fs::read_to_string(tool::workspace().join("docs/moving-over.md"))?;
    let (_, section_on) =
        page.split_once(&format!("\n## {section}\n")).with_context(|| format!("no section {section}"))?;
    let text = section_on.split("\n## ").next().unwrap_or_default();
    let (_, now) = text.split_once("\nNow").with_context(|| format!("{section} has nothing under Now"))?;
    let mut blocks: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in now.lines() {
        match line.strip_prefix("    ") {
            Some(code) if is_open => {
                let block = blocks.last_mut().expect("one is open");
                match block.strip_suffix('\\') {
                    Some(begun) => *block = format!("{begun}{}", code.trim_start()),
                    None => *block += &format!("\n{code}"),
                }
            }
            Some(code) => {
                blocks.push(code.to_owned());
                is_open = true;
            }
            None => is_open = false,
        }
    }
    ensure!(!blocks.is_empty(), "{section} has no command under Now");
    Ok(blocks)
}

/// The words of a command, as a shell splits them, with each of these put in the place of another.
///
/// # Errors
/// It has an open quote, or lacks what is to be replaced: the page says something else than the test thinks.
pub fn words(command: &str, replaced: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut command = command.to_owned();
    for (from, to) in replaced {
        ensure!(command.contains(from), "{command:?} does not say {from:?}");
        command = command.replace(from, to);
    }
    shlex::split(&command).with_context(|| format!("{command:?} has an open quote"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_section_of_the_page_has_its_commands() -> Result<()> {
        let commands = now("workerlist-gen")?;
        assert_eq!(commands.len(), 2, "{commands:?}");
        let words = words(&commands[1], &[("rollcall/consumer", "image")])?;
        assert_eq!((words[0].as_str(), words.last().map(String::as_str)), ("docker", Some("workerlist-gen")));
        assert!(!words.iter().any(|word| word.contains(['\\', '\n'])), "{words:?}");
        assert!(now("nothing").is_err());
        Ok(())
    }
}
