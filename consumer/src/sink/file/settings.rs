//! The settings of a file: as they are written, in TOML or by flags, and as they are used.

use std::{path::PathBuf, time::Duration};

use rollcall_shared::{
    model::{check::FILE, name::TargetName},
    process::{setting::SettingError, time},
};
use serde::Deserialize;

use super::{
    check::{Check, settings::RawCheck},
    command::CommandLine,
    install::{
        Backups, Mode, Owner,
        files::{self, SERVICE},
    },
    notify::{Notify, settings::RawNotify},
    read_back::{RawReadBack, ReadBack},
    render::{Content, Format, RawRenderSettings, RenderSettings},
    verify::{Probe, RawVerify, Verify},
};
use crate::sink::{http::HttpConfig, settings::SinkKind};

/// A file that is kept, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// The file.
    pub dest: PathBuf,
    /// What it is rendered by.
    pub content: Content,
    /// What that can be told besides.
    pub render: RenderSettings,
    /// Its permission bits.
    pub mode: Option<Mode>,
    /// Its owner.
    pub owner: Option<Owner>,
    /// What a staged file must pass.
    pub check: Option<Check>,
    /// How it is verified once its reader has it.
    pub verify: Option<Verify>,
    /// The program that is asked whether it has what is in the file.
    pub read_back: Option<ReadBack>,
    /// Which earlier files are kept.
    pub backups: Option<Backups>,
    /// Whom to notify of a new file.
    pub notify: Option<Notify>,
    /// The name of that notifier, where other targets may share it.
    pub shared: Option<TargetName>,
}

/// How many backups are kept unless it is said.
const MAX_BACKUPS: usize = 10;

/// The settings of a file as they are written. A target's own settings beside them are in the same table.
#[derive(Debug, Clone, Default)]
pub struct RawFile {
    /// The file.
    pub dest: Option<PathBuf>,
    /// A built-in format.
    pub format: Option<Format>,
    /// A template, instead of a format.
    pub template: Option<PathBuf>,
    /// What these can be told besides.
    pub render: RawRenderSettings,
    /// The file's permission bits.
    pub mode: Option<Mode>,
    /// Its owner.
    pub owner: Option<Owner>,
    /// What a staged file must pass.
    pub check: Option<RawCheck>,
    /// How long that may take.
    pub check_timeout: Option<Duration>,
    /// Whether instances are left out for which it refuses the file.
    pub check_isolates: Option<bool>,
    /// How it is verified once its reader has it.
    pub verify: Option<RawVerify>,
    /// The program that is asked whether it has what is in the file.
    pub read_back: Option<RawReadBack>,
    /// Which earlier files are kept.
    pub backups: Option<RawBackups>,
    /// Whom to notify of a new file.
    pub notify: Option<RawNotify>,
    /// The name of that notifier, where other targets may share it.
    pub shared: Option<TargetName>,
}

/// Which earlier files are kept, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBackups {
    dir: PathBuf,
    keep: Option<usize>,
}

impl RawBackups {
    fn parse(self) -> Result<Backups, SettingError> {
        match self.keep.unwrap_or(MAX_BACKUPS) {
            0 => Err(SettingError::new("backups.keep", 0, "1 or more")),
            keep => Ok(Backups { dir: self.dir, keep }),
        }
    }
}

impl RawFile {
    /// What it means.
    ///
    /// # Errors
    /// Settings that are missing, contradict each other or cannot work.
    pub fn parse(self) -> Result<FileConfig, SettingError> {
        let Self { dest, format, template, render, mode, owner, backups, notify, shared, .. } = self;
        let Self { check, check_timeout, check_isolates, verify, read_back, .. } = self;
        let dest = dest.ok_or_else(|| SettingError::missing("dest", "the file to render"))?;
        if dest.file_name().is_none() {
            return Err(SettingError::new("dest", dest.display(), "a file"));
        }
        let folder = dest.parent().unwrap_or(&dest);
        if folder.to_string_lossy().contains(SERVICE) || dest.to_string_lossy().matches(SERVICE).count() > 1 {
            let expected = format!("{SERVICE} once, and in the name of the file only");
            return Err(SettingError::new("dest", dest.display(), expected));
        }
        if let (true, Some(_)) = (files::is_pattern(&dest), &verify) {
            let expected = format!("one file, as {SERVICE} cannot go beside verify");
            return Err(SettingError::new("dest", dest.display(), expected));
        }
        let content = content(format, template)?;
        if let (true, Content::Format(format)) = (files::is_pattern(&dest), &content)
            && format.is_whole()
        {
            let expected =
                format!("one file, as {SERVICE} cannot go beside a format that is a whole configuration");
            return Err(SettingError::new("dest", dest.display(), expected));
        }
        if let Content::Format(format) = content
            && let extensions = format.extensions()
            && !extensions.is_empty()
            && !extensions.iter().any(|known| dest.extension().is_some_and(|found| found == *known))
        {
            let expected = format!("a name that ends in .{}", extensions.join(" or ."));
            return Err(SettingError::new("dest", dest.display(), expected));
        }
        if let (None, Some(isolates)) = (&check, check_isolates) {
            return Err(SettingError::new("check_isolates", isolates, "check beside it"));
        }
        let render = render.parse(&content)?;
        let check = match (check, check_timeout) {
            (Some(check), timeout) => {
                Some(Check { isolates: check_isolates.unwrap_or_default(), ..check.parse(timeout)? })
            }
            (None, Some(timeout)) => {
                return Err(SettingError::new("check_timeout", time::show(timeout), "check beside it"));
            }
            (None, None) => None,
        };
        let backups = backups.map(RawBackups::parse).transpose()?;
        let notify = notify.map(RawNotify::parse).transpose()?;
        if let (Some(_), Some(Notify::Command { command, .. })) = (&shared, &notify)
            && command.names_file()
        {
            let expected = format!("no {FILE} in it, as several targets share it");
            return Err(SettingError::new("notify.command", format!("{:?}", command.to_string()), expected));
        }
        let verify = verify.map(RawVerify::parse).transpose()?;
        if let (Some(Verify { probe: probe @ Probe::Nginx(_), .. }), None) = (&verify, &notify) {
            return Err(SettingError::new("verify", probe, "notify beside it, so that nginx reloads"));
        }
        let read_back = read_back.map(|raw| raw.parse(&content)).transpose()?;
        let config = FileConfig {
            dest,
            content,
            render,
            mode,
            owner,
            check,
            verify,
            read_back,
            backups,
            notify,
            shared,
        };
        Ok(config)
    }
}

impl RawFile {
    /// What it means for an answer that is served, which is no file.
    ///
    /// # Errors
    /// A setting of a file, or neither a format nor a template.
    pub fn parse_served(self) -> Result<HttpConfig, SettingError> {
        self.refuse(SinkKind::Http)?;
        let content = content(self.format, self.template)?;
        Ok(HttpConfig { render: self.render.parse(&content)?, content })
    }

    /// Refuses everything of a file beside a sink that renders nothing.
    ///
    /// # Errors
    /// A setting that is given.
    pub fn refuse_all(&self, kind: SinkKind) -> Result<(), SettingError> {
        self.refuse(kind)?;
        let RawRenderSettings { nginx_proxy, haproxy, nginx, traefik, vars } = &self.render;
        let settings = [
            ("format", self.format.is_some()),
            ("template", self.template.is_some()),
            ("nginx_proxy", nginx_proxy.is_some()),
            ("haproxy", haproxy.is_some()),
            ("nginx", nginx.is_some()),
            ("traefik", traefik.is_some()),
            ("vars", vars.is_some()),
        ];
        refuse_given(kind, &settings)
    }

    /// Refuses what only a file has.
    fn refuse(&self, kind: SinkKind) -> Result<(), SettingError> {
        let Self { dest, mode, owner, check, check_timeout, check_isolates, .. } = self;
        let Self { verify, read_back, backups, notify, shared, .. } = self;
        let settings = [
            ("dest", dest.is_some()),
            ("mode", mode.is_some()),
            ("owner", owner.is_some()),
            ("check", check.is_some()),
            ("check_timeout", check_timeout.is_some()),
            ("check_isolates", check_isolates.is_some()),
            ("verify", verify.is_some()),
            ("read_back", read_back.is_some()),
            ("backups", backups.is_some()),
            ("notify", notify.is_some() || shared.is_some()),
        ];
        refuse_given(kind, &settings)
    }
}

fn refuse_given(kind: SinkKind, settings: &[(&'static str, bool)]) -> Result<(), SettingError> {
    match settings.iter().find(|(_, is_given)| *is_given) {
        Some((setting, _)) => {
            Err(SettingError::new(*setting, "given", format!("none of it beside sink = \"{kind}\"")))
        }
        None => Ok(()),
    }
}

/// What is rendered by one of them.
fn content(format: Option<Format>, template: Option<PathBuf>) -> Result<Content, SettingError> {
    match (format, template) {
        (Some(format), None) => Ok(Content::Format(format)),
        (None, Some(template)) => Ok(Content::Template(template)),
        (None, None) => Err(SettingError::missing("format", "it or template")),
        (Some(_), Some(template)) => {
            Err(SettingError::new("template", template.display(), "it or format, not both"))
        }
    }
}

/// A file that is given by flags.
#[derive(Debug, Clone, clap::Args)]
pub struct FileFlags {
    /// The file to render
    #[arg(long, env = "ROLLCALL_DEST", value_name = "FILE", required = false)]
    pub dest: Option<PathBuf>,
    /// Built-in format
    #[arg(long, env = "ROLLCALL_FORMAT", value_name = "FORMAT", conflicts_with = "template")]
    pub format: Option<Format>,
    /// Template in the Jinja language, instead of a format
    #[arg(long, env = "ROLLCALL_TEMPLATE", value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// The file's mode [default: as it is, or 0644]
    #[arg(long, env = "ROLLCALL_MODE", value_name = "OCTAL")]
    pub mode: Option<Mode>,
    /// The file's owner, by name or number [default: as it is]
    #[arg(long, env = "ROLLCALL_OWNER", value_name = "USER[:GROUP]")]
    pub owner: Option<Owner>,
    /// Command that the staged file must pass, with {file} for it; run without a shell
    #[arg(long, env = "ROLLCALL_CHECK", value_name = "COMMAND")]
    pub check: Option<CommandLine>,
    /// How long the check may take [default: 10s]
    #[arg(long, env = "ROLLCALL_CHECK_TIMEOUT", value_name = "TIME", requires = "check")]
    #[arg(value_parser = time::parse)]
    pub check_timeout: Option<Duration>,
    /// Folder in which the ten last files are kept
    #[arg(long, env = "ROLLCALL_BACKUP_DIR", value_name = "DIR", alias = "bkp-dir")]
    pub backup_dir: Option<PathBuf>,
}

impl FileFlags {
    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        let Self { dest, format, template, mode, owner, check, check_timeout: _, backup_dir } = self;
        dest.is_some()
            || format.is_some()
            || template.is_some()
            || mode.is_some()
            || owner.is_some()
            || check.is_some()
            || backup_dir.is_some()
    }

    /// The same as it would be written in TOML.
    pub fn raw(&self) -> RawFile {
        let Self { dest, format, template, mode, owner, check, check_timeout, backup_dir } = self.clone();
        let backups = backup_dir.map(|dir| RawBackups { dir, keep: None });
        let check = check.map(RawCheck::Command);
        let raw = RawFile { dest, format, template, mode, owner, check, check_timeout, ..RawFile::default() };
        RawFile { backups, ..raw }
    }
}
