//! Turning a selection into the bytes of a file.

pub mod renderer;

pub use renderer::{Content, Format, RenderError, Rendered, Renderer};
