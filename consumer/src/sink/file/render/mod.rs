//! Turning a selection into the bytes of a file. This folder alone names the template engines.

mod block;
pub mod format;
mod go;
pub mod hosts;
mod installed;
mod lookups;
pub mod renderer;
mod template;
mod view;

pub use format::Format;
pub use renderer::{Changes, Content, RenderError, Rendered, Renderer};
