//! The calls to a Docker engine.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use bollard::{
    container::LogOutput,
    errors::Error,
    exec::{StartExecOptions, StartExecResults},
    models::{ExecConfig, ExecInspectResponse, SystemInfo},
    query_parameters::{
        ContainerArchiveInfoOptionsBuilder, EventsOptionsBuilder, KillContainerOptionsBuilder,
        ListContainersOptions,
    },
};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use rollcall_shared::model::{check::MAX_SAID_BYTES, signal::Signal};

use super::{
    client::Docker,
    decode::{decode_container, decode_event, decode_summary},
    engine::{DockerError, Engine, Events, Exec},
};
use crate::inventory::container::{Container, Summary};

const READING_EVENTS: &str = "reading its events";
const ASKING_FOR_ID: &str = "asking for its ID";
const INSPECTING: &str = "inspecting a container";
const RUNNING: &str = "running a command in a container";

/// The events that change what is registered. Podman knows the end of a container as `died`.
const ACTIONS: [&str; 10] =
    ["start", "die", "died", "kill", "health_status", "rename", "pause", "unpause", "connect", "disconnect"];

impl Docker {
    async fn info(&self) -> Result<SystemInfo, DockerError> {
        self.api.info().await.map_err(|error| self.call_failed(ASKING_FOR_ID, error))
    }
}

/// The beginning of each of a command's outputs.
#[derive(Default)]
struct Said {
    errors: Vec<u8>,
    output: Vec<u8>,
}

impl Said {
    fn take(&mut self, part: LogOutput) {
        let (kept, message) = match part {
            LogOutput::StdErr { message } => (&mut self.errors, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (&mut self.output, message),
            LogOutput::StdIn { .. } => return,
        };
        let room = MAX_SAID_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&message[..message.len().min(room)]);
    }

    fn first(self) -> Vec<u8> {
        if self.errors.trim_ascii().is_empty() { self.output } else { self.errors }
    }
}

/// Where an engine's data is: its host's name and its folder there.
fn place(info: SystemInfo) -> String {
    format!("{}:{}", info.name.unwrap_or_default(), info.docker_root_dir.unwrap_or_default())
}

#[async_trait]
impl Engine for Docker {
    async fn agree(&self) -> Result<(), DockerError> {
        self.choose_version().await
    }

    async fn id(&self) -> Result<String, DockerError> {
        let first = self.info().await?;
        let id = first.id.clone().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| self.failed(ASKING_FOR_ID, "it has none"))?;
        // Podman makes one up at each call; what it keeps is where its data is.
        let is_kept = self.info().await?.id.as_ref() == Some(&id);
        Ok(if is_kept { id } else { place(first) })
    }

    /// What happened before the engine took the subscription comes first, from its memory of 256 events.
    fn events(&self, since: Timestamp) -> Events {
        let filters = HashMap::from([("type", vec!["container", "network"]), ("event", ACTIONS.to_vec())]);
        let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let ended = self.failed(READING_EVENTS, "it ended them");
        let docker = self.clone();
        let events = self.api.events(Some(options)).filter_map(move |message| {
            let event = match message {
                Ok(message) => decode_event(message).map(Ok),
                Err(error) => Some(Err(docker.call_failed(READING_EVENTS, error))),
            };
            async { event }
        });
        events.chain(stream::once(async { Err(ended) })).boxed()
    }

    async fn list(&self) -> Result<Vec<Summary>, DockerError> {
        let list = self.api.list_containers(None::<ListContainersOptions>).await;
        let list = list.map_err(|error| self.call_failed("listing containers", error))?;
        Ok(list.into_iter().filter_map(decode_summary).collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, DockerError> {
        match self.api.inspect_container(id, None).await {
            Ok(answer) => decode_container(answer).map_err(|error| self.failed(INSPECTING, error)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.call_failed(INSPECTING, error)),
        }
    }

    async fn kill(&self, id: &str, signal: Signal) -> Result<(), DockerError> {
        let options = KillContainerOptionsBuilder::default().signal(&signal.number().to_string()).build();
        let sent = self.api.kill_container(id, Some(options)).await;
        sent.map_err(|error| self.call_failed("sending a signal", error))
    }

    async fn sees(&self, id: &str, path: &str) -> Result<bool, DockerError> {
        let options = ContainerArchiveInfoOptionsBuilder::default().path(path).build();
        match self.api.get_container_archive_info(id, Some(options)).await {
            Ok(_) => Ok(true),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(self.call_failed("looking for a file in a container", error)),
        }
    }

    async fn exec(&self, id: &str, words: &[String], timeout: Duration) -> Result<Exec, DockerError> {
        let config = ExecConfig {
            cmd: Some(words.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        let failed = |error| self.call_failed(RUNNING, error);
        let exec = self.api.create_exec(id, config).await.map_err(failed)?.id;
        let mut said = Said::default();
        let run = async {
            let started = self.api.start_exec(&exec, None::<StartExecOptions>).await?;
            if let StartExecResults::Attached { mut output, input: _ } = started {
                while let Some(part) = output.next().await {
                    said.take(part?);
                }
            }
            Ok(())
        };
        let is_late = match tokio::time::timeout(timeout, run).await {
            Ok(ended) => ended.map(|()| false).map_err(failed)?,
            Err(_) => true,
        };
        let ExecInspectResponse { exit_code, pid, running, .. } =
            self.api.inspect_exec(&exec).await.map_err(failed)?;
        match exit_code {
            Some(exit_code) if running != Some(true) => Ok(Exec::Ended { exit_code, output: said.first() }),
            _ if is_late => Ok(Exec::Unfinished { pid: pid.and_then(|pid| pid.try_into().ok()) }),
            _ => Err(self.failed(RUNNING, "it has closed its output and goes on")),
        }
    }
}
