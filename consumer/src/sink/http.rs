//! The sink of targets that are answers of the consumer's own HTTP server: Prometheus's http_sd, and JSON for scripts.
//!
//! What is not known is not answered with something empty: 503 has a reader keep what it has.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use axum::body::Bytes;
use jiff::Timestamp;
use rollcall_shared::{model::name::TargetName, process::setting::SettingError};
use tokio::{sync::watch, time::Instant};

use super::{
    Applied, Content, Sink, SinkError,
    file::{
        notes,
        render::{Changes, Content as RenderContent, Format, RenderSettings, Rendered, Renderer},
    },
    intake::Intake,
    settings::SinkConfig,
};
use crate::{
    config::TargetConfig,
    roll::{Hold, Selection},
    state_dir::StateDir,
    target::{generation::Generation, state::Acked},
};

/// Why there is no answer before the store has answered.
const STARTING: &str = "starting: the store has not answered yet";

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// What it is rendered by.
    pub content: RenderContent,
    /// What that can be told besides.
    pub render: RenderSettings,
}

impl HttpConfig {
    /// Its media type: what a built-in format is, or text for a template.
    fn media_type(&self) -> &'static str {
        match &self.content {
            RenderContent::Format(format) => format.media_type(),
            RenderContent::Template(_) => Format::TEXT,
        }
    }

    fn renderer(&self, target: &TargetConfig) -> Renderer {
        Renderer::new(target.name.clone(), self.content.clone(), target.select.named_services())
            .with(self.render.clone())
    }

    /// Checks what can be known to be wrong before there is a roll.
    ///
    /// # Errors
    /// A template that cannot be used.
    pub fn check(&self, target: &TargetConfig) -> Result<(), SettingError> {
        self.renderer(target).check().map_err(|error| error.within(&format!("target {}: ", target.name)))
    }
}

/// What is answered for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// Nothing that could be relied upon; why, on one line.
    Unknown(String),
    /// This.
    Known {
        /// Its media type.
        media_type: &'static str,
        /// The bytes.
        bytes: Bytes,
    },
}

/// The answers of all targets that are served. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pages(watch::Sender<BTreeMap<TargetName, Page>>);

impl Pages {
    /// What is answered for a target now; `None` where it is not served.
    pub fn get(&self, target: &TargetName) -> Option<Page> {
        self.0.borrow().get(target).cloned()
    }

    /// Says of all targets that are served that nothing is known yet: their sinks are opened once the store has answered, and
    /// until then a target that is only late must not look like one that is absent.
    pub fn expect(&self, targets: &[TargetConfig]) {
        for target in targets.iter().filter(|target| matches!(target.sink, SinkConfig::Http(_))) {
            self.set(&target.name, Page::Unknown(STARTING.to_owned()));
        }
    }

    fn set(&self, target: &TargetName, page: Page) {
        self.0.send_modify(|pages| drop(pages.insert(target.clone(), page)));
    }
}

/// Keeps one answer.
#[derive(Debug)]
pub struct HttpSink {
    target: TargetConfig,
    config: HttpConfig,
    pages: Pages,
    /// Away while it renders on another thread.
    renderer: Option<Renderer>,
    intake: Intake,
    generation: Option<Generation>,
}

impl HttpSink {
    /// A sink for a target that was checked.
    pub fn open(target: &TargetConfig, config: &HttpConfig, state_dir: Arc<StateDir>, pages: Pages) -> Self {
        pages.set(&target.name, Page::Unknown("nothing was rendered yet".to_owned()));
        Self {
            target: target.clone(),
            config: config.clone(),
            pages,
            renderer: None,
            intake: Intake::open(target, state_dir),
            generation: None,
        }
    }

    /// Renders on another thread, as a template may take its time.
    async fn render(
        &mut self,
        mut renderer: Renderer,
        changes: Changes,
        now: Instant,
    ) -> Result<Rendered, SinkError> {
        let rendering = tokio::task::spawn_blocking(move || (renderer.render(changes, now), renderer));
        let (rendered, renderer) = rendering.await?;
        // One that failed in the middle starts anew.
        self.renderer = rendered.is_ok().then_some(renderer);
        Ok(rendered?)
    }

    /// Keeps what is answered, or that nothing is.
    fn hold(&self, until: Option<Instant>, reason: String) -> Applied {
        if !matches!(self.pages.get(&self.target.name), Some(Page::Known { .. })) {
            self.pages.set(&self.target.name, Page::Unknown(reason.clone()));
        }
        Applied::Held { until, reason, due: None }
    }
}

#[async_trait]
impl Sink for HttpSink {
    async fn apply(&mut self, selection: &watch::Receiver<Selection>) -> Result<Applied, SinkError> {
        let now = Instant::now();
        let mut renderer = self.renderer.take().unwrap_or_else(|| self.config.renderer(&self.target));
        renderer.look_again(now);
        // At one moment: what is lost after the verdict is not held by it.
        let (taken, changes) = {
            let selection = selection.borrow();
            let taken = self.intake.take(&selection, now);
            let changes = renderer.changes(&selection, &taken.verdict);
            (taken, changes)
        };
        if let Some(Hold { until, reason }) = taken.verdict.floor {
            self.renderer = Some(renderer);
            return Ok(self.hold(until, reason));
        }
        let rendered = self.render(renderer, changes, now).await?;
        if let Some(reason) = taken.mismatch.as_ref().filter(|_| rendered.instances == 0) {
            return Ok(self.hold(None, notes::unmatched(reason)));
        }
        let Rendered { bytes, instances, left_out, keeps_hosts, .. } = rendered;
        let page = Page::Known { media_type: self.config.media_type(), bytes: bytes.into() };
        let is_same = self.pages.get(&self.target.name).as_ref() == Some(&page);
        self.pages.set(&self.target.name, page);
        self.intake.shown(taken.step);
        let generation = match self.generation.filter(|_| is_same) {
            Some(generation) => generation,
            None => Generation::after(self.generation, Timestamp::now()),
        };
        self.generation = Some(generation);
        let (held, notes) = (taken.held(), [taken.notes, notes::notes(&left_out, keeps_hosts)].concat());
        let content = Content {
            generation,
            acked: None,
            instances,
            held,
            refused: vec![],
            notes,
            started: taken.started,
            is_quiet: true,
            look_again: taken.verdict.next_change(),
        };
        Ok(if is_same { Applied::Unchanged(content) } else { Applied::Written(content) })
    }

    async fn remember(&mut self, _: Option<(Generation, Acked)>) -> Result<(), SinkError> {
        self.intake.remember().await;
        Ok(())
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.pages.0.send_modify(|pages| drop(pages.remove(&self.target.name)));
    }
}
