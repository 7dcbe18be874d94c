//! Turning a selection into the bytes of a file. This folder alone names the template engines.

mod block;
mod envoy_eds;
pub mod format;
mod go;
pub mod haproxy;
mod host_lines;
pub mod hosts;
mod installed;
mod lookups;
pub mod nginx;
pub mod nginx_proxy;
mod prometheus;
mod quoting;
pub mod renderer;
pub mod settings;
mod template;
pub mod traefik;
mod view;

pub use format::Format;
pub(crate) use format::is_reachable;
pub use renderer::{Changes, Content, RenderError, Rendered, Renderer};
pub use settings::{RawRenderSettings, RenderSettings};
