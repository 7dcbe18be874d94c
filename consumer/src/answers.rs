//! The consumer's own paths of the HTTP server: how the targets fare, and the answers of those that are served.

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use rollcall_shared::model::name::TargetName;
use serde::Serialize;

use crate::{
    sink::http::{Page, Pages},
    target::status::{Board, Status},
};

/// The routes `/v1/targets` and `/v1/targets/NAME`.
pub fn routes(board: Board, pages: Pages) -> Router {
    let list = {
        let board = board.clone();
        async move || {
            let listing = serde_json::to_string_pretty(&listing(&board)).expect("texts can be written");
            ([(CONTENT_TYPE, "application/json")], listing + "\n")
        }
    };
    let one = async move |Path(name): Path<String>| answer(&name, &board, &pages);
    Router::new().route("/v1/targets", get(list)).route("/v1/targets/{name}", get(one))
}

#[derive(Serialize)]
struct Listed {
    name: TargetName,
    #[serde(flatten)]
    status: Status,
}

fn listing(board: &Board) -> Vec<Listed> {
    board.all().into_iter().map(|(name, status)| Listed { name, status }).collect()
}

/// What is served for a target: 503 while that is not known, 404 where nothing is.
fn answer(name: &str, board: &Board, pages: &Pages) -> Response {
    let Ok(name) = name.parse::<TargetName>() else {
        return (StatusCode::NOT_FOUND, "no such target\n").into_response();
    };
    match pages.get(&name) {
        Some(Page::Known { media_type, bytes }) => ([(CONTENT_TYPE, media_type)], bytes).into_response(),
        Some(Page::Unknown(reason)) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
        None if board.all().contains_key(&name) => {
            let hint = format!("target {name} is not served: expected sink = \"http\"\n");
            (StatusCode::NOT_FOUND, hint).into_response()
        }
        None => (StatusCode::NOT_FOUND, "no such target\n").into_response(),
    }
}
