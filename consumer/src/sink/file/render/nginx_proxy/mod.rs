//! The format `nginx-proxy`: the virtual hosts of all nodes in one file of nginx's `conf.d`, as nginx-proxy makes it of
//! one host's containers by docker-gen (<https://github.com/nginx-proxy/nginx-proxy>, nginx.tmpl).
//!
//! What a container declares is hostile: each part is parsed into a type that nginx takes in any combination, or is
//! left out and named. All of it is pure but for `folders.rs`, which looks at which files are there.

mod certificate;
mod declaration;
pub(super) mod folders;
mod host_name;
mod multiports;
mod path;
mod regex;
pub mod settings;
mod sites;
mod view;

#[cfg(test)]
mod tests;

pub(super) use declaration::{Candidate, candidate};
pub use settings::NginxProxy;
pub(super) use view::{File, render};
