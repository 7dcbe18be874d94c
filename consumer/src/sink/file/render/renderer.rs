//! Turns a selection into the bytes of a file.
//!
//! It takes what has changed out of the selection first, and renders afterwards: whoever changes the selection never
//! waits for a template. An instance that a format cannot express is left out and named, and never stops the rest.
//! Nothing is written here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
};

use rollcall_shared::{
    model::{
        instance::Address,
        name::{ContainerName, ServiceName, TargetName},
    },
    process::setting::SettingError,
    store::Revision,
};
use tokio::time::Instant;

use super::{
    Format,
    block::Block,
    hosts::{Hosts, Standing},
    installed::Installed,
    nginx_proxy::{self, File, folders::Folders},
    settings::RenderSettings,
    template::{self, Facts},
};
use crate::roll::{Difference, Named, Row, Selection, Verdict, Version};

/// What a target's file is made by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A built-in format.
    Format(Format),
    /// The user's template, in the Jinja language.
    Template(PathBuf),
}

/// Why nothing was rendered. All of it may be otherwise with the next roll or the next edit.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The template's file cannot be read.
    #[error("cannot read the template {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A folder that the format looks at cannot be read.
    #[error("cannot read the folder {path}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The template is wrong, or fails with this roll.
    #[error("the template {path} fails: {reason}", path = path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// Where and why, on one line.
        reason: String,
    },
    /// A built-in format failed.
    #[error("the format fails")]
    Format(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A file's content.
#[derive(Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The bytes; none where each service has its own.
    pub bytes: Vec<u8>,
    /// Each service's own bytes, where that is wanted.
    pub each: BTreeMap<ServiceName, Vec<u8>>,
    /// How many instances are in it.
    pub instances: usize,
    /// The instances that the format cannot express.
    pub left_out: Vec<String>,
    /// Whether host names stay that do not resolve, as none does here.
    pub keeps_hosts: bool,
}

/// Renders one target.
#[derive(Debug)]
pub struct Renderer {
    target: TargetName,
    content: Content,
    /// Services that are there also while they have no instance.
    named: Named,
    /// What each service came to, as long as its rows have not changed: one change among many instances
    /// costs what its own service costs.
    blocks: BTreeMap<ServiceName, (Version, Block)>,
    /// The host names of the blocks, where their program resolves them when it loads the file.
    hosts: Hosts,
    /// The services that the file has, where its program takes some of them for one.
    shown: BTreeSet<ServiceName>,
    /// Whether each service has a file of its own.
    per_service: bool,
    settings: RenderSettings,
    /// The files that the format looks at, as they were when it was rendered last.
    folders: Option<Folders>,
    /// Whether they are others by now.
    has_other_files: bool,
}

/// What a selection has that was not rendered yet.
#[derive(Debug)]
pub struct Changes {
    /// Services that have no row any more.
    gone: Vec<ServiceName>,
    /// Services whose rows are others now.
    changed: Vec<(ServiceName, Version, Vec<Row>)>,
    /// Whether files that the format looks at came or went.
    has_other_files: bool,
    /// The roll's revision when the selection changed last.
    revision: Revision,
}

impl Changes {
    /// Whether everything was rendered already.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.changed.is_empty() && !self.has_other_files
    }

    /// Leaves these rows out.
    pub fn leave_out(&mut self, is_out: impl Fn(&Row) -> bool) {
        self.changed.iter_mut().for_each(|(_, _, rows)| rows.retain(|row| !is_out(row)));
    }
}

impl Renderer {
    /// A renderer for the target. The `named` services are there also while they have no instance.
    pub fn new(target: TargetName, content: Content, named: Named) -> Self {
        let (blocks, hosts, shown) = (BTreeMap::new(), Hosts::default(), BTreeSet::new());
        Self {
            target,
            content,
            named,
            blocks,
            hosts,
            shown,
            per_service: false,
            settings: RenderSettings::default(),
            folders: None,
            has_other_files: false,
        }
    }

    /// Has each service rendered by itself.
    #[must_use]
    pub fn per_service(self, per_service: bool) -> Self {
        Self { per_service, ..self }
    }

    /// The same with settings of its content.
    #[must_use]
    pub fn with(self, settings: RenderSettings) -> Self {
        Self { settings, ..self }
    }

    /// Takes in the file that is there: what it has is not the first to go.
    pub fn seed(&mut self, file: &[u8]) {
        let Content::Format(format) = self.content else { return };
        let Installed { services, hosts } = format.read(&String::from_utf8_lossy(file));
        self.shown.extend(services);
        self.hosts.seed(hosts);
    }

    /// Takes in the services that have files of their own, whatever is in these: somebody may have edited them.
    pub fn seed_services(&mut self, services: BTreeSet<ServiceName>) {
        if matches!(self.content, Content::Format(format) if format.is_of_one_service()) {
            self.shown.extend(services);
        }
    }

    /// Checks what can be checked before there is a roll: that a template can be read and parsed, and that a file has no
    /// more services than its program takes from one.
    ///
    /// # Errors
    /// The template cannot be used, or the file is to have several services.
    pub fn check(&self) -> Result<(), SettingError> {
        let path = match &self.content {
            Content::Template(path) => path,
            Content::Format(format) => return self.check_services(*format),
        };
        template::check(path).map_err(|error| match error {
            RenderError::Read { source, .. } => SettingError::caused("template", path.display(), source),
            RenderError::Template { reason, .. } => SettingError::caused("template", path.display(), reason),
            error @ (RenderError::Format(_) | RenderError::Folder { .. }) => {
                SettingError::caused("template", path.display(), error)
            }
        })
    }

    fn check_services(&self, format: Format) -> Result<(), SettingError> {
        let Named { services, is_guess } = &self.named;
        let has_one = services.len() == 1 && !is_guess;
        if !format.is_of_one_service() || self.per_service || has_one {
            return Ok(());
        }
        let named: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
        let named = if *is_guess || named.is_empty() { "not given".to_owned() } else { named.join(", ") };
        let expected =
            "one service, or {service} in the name of dest, as Envoy takes one service from each file";
        Err(SettingError::new("select.service", named, expected))
    }

    /// Has these services rendered anew, though the selection has not changed.
    pub fn forget<'s>(&mut self, services: impl IntoIterator<Item = &'s ServiceName>) {
        services.into_iter().for_each(|service| drop(self.blocks.remove(service)));
    }

    /// Takes out of the selection, with what the verdict holds, what was not rendered yet.
    pub fn changes(&self, selection: &Selection, verdict: &Verdict) -> Changes {
        let is_settled =
            |block: &Block| block.hosts.iter().all(|(name, standing)| self.hosts.standing(name) == *standing);
        let known = self.blocks.iter();
        let known = known.map(|(service, (version, block))| (service, is_settled(block).then_some(*version)));
        let Difference { changed, gone } = selection.difference(verdict, known);
        let rows = |service| selection.rows(service, verdict).into_iter().cloned().collect();
        let changed = changed.into_iter();
        Changes {
            gone: gone.into_iter().cloned().collect(),
            changed: changed.map(|(service, version)| (service.clone(), version, rows(service))).collect(),
            has_other_files: self.has_other_files,
            revision: selection.revision(),
        }
    }

    /// Renders all that was taken out of the selection so far.
    ///
    /// # Errors
    /// A template that cannot be read or fails.
    pub fn render(
        &mut self,
        Changes { gone, changed, has_other_files: _, revision }: Changes,
        now: Instant,
    ) -> Result<Rendered, RenderError> {
        for service in gone {
            self.blocks.remove(&service);
        }
        let rows = changed.iter().flat_map(|(.., rows)| rows);
        self.hosts.look_up(rows.filter_map(|row| self.host(row)).cloned().collect::<Vec<_>>(), now);
        for (service, version, rows) in changed {
            let block = self.block(&service, &rows.iter().collect::<Vec<_>>())?;
            self.blocks.insert(service, (version, block));
        }
        let folders = self.look()?;
        let is_found = self.named.is_guess && !self.blocks.is_empty();
        let absent = self.named.services.iter().filter(|name| !is_found && !self.blocks.contains_key(*name));
        let absent: Vec<(&ServiceName, Block)> =
            absent.map(|name| Ok((name, self.block(name, &[])?))).collect::<Result<_, RenderError>>()?;
        let kept = self.emptied();
        let kept = kept.iter().map(|name| Ok((name, self.block(name, &[])?)));
        let kept = kept.collect::<Result<Vec<_>, RenderError>>()?;
        let present = self.blocks.iter().map(|(service, (_, block))| (service, block));
        let mut blocks: Vec<(&ServiceName, &Block)> =
            absent.iter().chain(&kept).map(|(name, block)| (*name, block)).chain(present).collect();
        blocks.sort_by_key(|(service, _)| *service);
        let clashes = match self.content {
            Content::Format(format) if format.ignores_case() => {
                leave_clashes_out(&mut blocks, &mut self.shown)
            }
            Content::Format(format) if format.is_of_one_service() => {
                self.shown = blocks.iter().map(|(service, _)| (*service).clone()).collect();
                vec![]
            }
            _ => vec![],
        };
        let (File { bytes, served, left_out }, each) = if self.per_service {
            let own = |one: &(&ServiceName, &Block)| {
                Ok((one.0.clone(), self.file(&[*one], &folders, revision)?.bytes))
            };
            (File::default(), blocks.iter().map(own).collect::<Result<_, RenderError>>()?)
        } else {
            (self.file(&blocks, &folders, revision)?, BTreeMap::new())
        };
        let instances = served + blocks.iter().map(|(_, block)| block.instances).sum::<usize>();
        let of_blocks = blocks.iter().flat_map(|(_, block)| &block.left_out).cloned();
        let rendered = Rendered {
            bytes,
            each,
            instances,
            left_out: of_blocks.chain(clashes).chain(left_out).collect(),
            keeps_hosts: blocks
                .iter()
                .flat_map(|(_, block)| &block.hosts)
                .any(|(_, standing)| *standing == Standing::Kept),
        };
        (self.folders, self.has_other_files) = (Some(folders), false);
        Ok(rendered)
    }

    /// The services that had files of their own and have no instance any more, where their program keeps what a file said
    /// that goes.
    fn emptied(&self) -> Vec<ServiceName> {
        let is_there = |name: &ServiceName| {
            self.blocks.contains_key(name) || (!self.named.is_guess && self.named.services.contains(name))
        };
        match self.content {
            Content::Format(format) if format.is_of_one_service() && self.per_service => {
                self.shown.iter().filter(|name| !is_there(name)).cloned().collect()
            }
            _ => vec![],
        }
    }

    /// The file of these blocks. What the blocks count and leave out already is not in it once more.
    fn file(
        &self,
        blocks: &[(&ServiceName, &Block)],
        folders: &Folders,
        revision: Revision,
    ) -> Result<File, RenderError> {
        let texts = || blocks.iter().filter_map(|(service, block)| Some((*service, block.text()?)));
        let bytes = match &self.content {
            Content::Format(Format::NginxProxy) => {
                let candidates = blocks.iter().flat_map(|(_, block)| block.candidates());
                return nginx_proxy::render(&self.settings.nginx_proxy, folders, candidates);
            }
            Content::Format(Format::Traefik) => self.settings.traefik.join(&texts().collect::<Vec<_>>())?,
            Content::Format(Format::Haproxy) => {
                let runtime = self.settings.runtime.as_ref();
                self.settings.haproxy.join(&texts().collect::<Vec<_>>(), runtime)?
            }
            Content::Format(format) => format.join(texts().map(|(_, text)| text)),
            Content::Template(path) => template::fill(
                path,
                Facts { target: &self.target, vars: &self.settings.vars, revision },
                blocks,
            )?,
        };
        Ok(File { bytes, served: 0, left_out: vec![] })
    }

    /// Looks at the files that the format depends on.
    fn look(&self) -> Result<Folders, RenderError> {
        match self.content {
            Content::Format(Format::NginxProxy) => Folders::look(&self.settings.nginx_proxy),
            _ => Ok(Folders::default()),
        }
    }

    /// Asks again for host names whose answers are old, and for the files that the format looks at. What has changed by
    /// that is among the next changes.
    pub fn look_again(&mut self, now: Instant) {
        // What cannot be read now fails when it is rendered.
        self.has_other_files =
            self.folders.as_ref().is_some_and(|last| self.look().is_ok_and(|folders| folders != *last));
        let hosts = self.blocks.values().flat_map(|(_, block)| &block.hosts);
        let used: HashSet<_> = hosts.map(|(name, _)| name).collect();
        self.hosts.look_again(|name| used.contains(name), now);
    }

    /// When to look again even if nothing changes: when a host name that does not resolve may.
    pub fn next_look(&self) -> Option<Instant> {
        self.hosts.next_look()
    }

    /// The host name of a row, where the program resolves it when it loads the file.
    fn host<'r>(&self, row: &'r Row) -> Option<&'r ContainerName> {
        match (&self.content, &row.endpoint.address) {
            (Content::Format(format), Address::Name(name))
                if format.resolves_at_load() && !self.settings.nginx.resolves_later() =>
            {
                Some(name)
            }
            _ => None,
        }
    }

    fn block(&self, service: &ServiceName, rows: &[&Row]) -> Result<Block, RenderError> {
        match &self.content {
            Content::Format(format) => {
                let hosts = rows.iter().filter_map(|row| self.host(row));
                let hosts = hosts.map(|name| (name.clone(), self.hosts.standing(name))).collect();
                Ok(Block { hosts, ..format.block(service, rows, &self.hosts, &self.settings)? })
            }
            Content::Template(_) => Ok(template::block(rows)),
        }
    }
}

/// Leaves out the services that the program takes for another one, and names them: the one that was `shown` stays, and
/// the first in order among those that are new.
fn leave_clashes_out(
    blocks: &mut Vec<(&ServiceName, &Block)>,
    shown: &mut BTreeSet<ServiceName>,
) -> Vec<String> {
    let (old, new): (Vec<&ServiceName>, Vec<_>) =
        blocks.iter().map(|(service, _)| *service).partition(|service| shown.contains(*service));
    let mut stay = HashMap::new();
    for service in old.into_iter().chain(new) {
        stay.entry(service.as_str().to_ascii_lowercase()).or_insert(service);
    }
    let mut clashes = vec![];
    blocks.retain(|(service, _)| {
        let stays = stay[&service.as_str().to_ascii_lowercase()];
        if stays != *service {
            clashes.push(format!("service {service}, which differs from {stays} in case only"));
        }
        stays == *service
    });
    *shown = stay.into_values().cloned().collect();
    clashes
}

#[cfg(test)]
mod tests;
