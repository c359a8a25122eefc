use std::fmt::Debug;
use std::sync::Arc;

use actix_web::http::{StatusCode, header};
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{HttpResponse, Resource};
use serde::Serialize;

/// Characters of a failed check's text that are shown.
const MAX_REASON: usize = 500;

/// How the node is. Called at each request, on the gateway's thread: it must not block.
pub trait Health: Debug + Send + Sync + 'static {
    /// An error means that only a restart helps; an orchestrator then restarts the process.
    fn live(&self) -> Result<(), String>;

    /// The node takes part when all checks are well.
    fn ready(&self) -> Vec<Check>;
}

/// One condition of readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is checked: one word.
    pub name: &'static str,
    /// Why it is not well, for people; no secrets. The first 500 characters are shown.
    pub result: Result<(), String>,
}

/// Renders all metrics in Prometheus' text format 0.0.4.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

#[derive(Serialize)]
struct Report {
    status: &'static str,
    checks: Vec<CheckReport>,
}

#[derive(Serialize)]
struct CheckReport {
    name: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Refusal {
    error: &'static str,
}

fn report(checks: Vec<Check>) -> HttpResponse {
    let well = checks.iter().all(|check| check.result.is_ok());
    let (code, status) = if well {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "failing")
    };
    let checks = checks
        .into_iter()
        .map(|Check { name, result }| CheckReport {
            name,
            ok: result.is_ok(),
            error: result
                .err()
                .map(|reason| reason.chars().take(MAX_REASON).collect()),
        })
        .collect();
    HttpResponse::build(code)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(Report { status, checks })
}

async fn live(health: Data<dyn Health>) -> HttpResponse {
    report(vec![Check {
        name: "process",
        result: health.live(),
    }])
}

async fn ready(health: Data<dyn Health>) -> HttpResponse {
    report(health.ready())
}

async fn metrics(render: Data<dyn Fn() -> String + Send + Sync>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        ))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(render())
}

async fn not_found() -> HttpResponse {
    HttpResponse::NotFound().json(Refusal {
        error: "no such path",
    })
}

async fn wrong_method() -> HttpResponse {
    HttpResponse::MethodNotAllowed()
        .insert_header((header::ALLOW, "GET, HEAD"))
        .json(Refusal {
            error: "only GET and HEAD",
        })
}

fn readable(path: &str) -> Resource {
    web::resource(path).default_service(web::to(wrong_method))
}

/// All paths of the gateway.
pub(crate) fn configure(app: &mut ServiceConfig, health: Arc<dyn Health>, render: RenderMetrics) {
    app.app_data(Data::from(health))
        .app_data(Data::from(render))
        .service(
            readable("/livez")
                .route(web::get().to(live))
                .route(web::head().to(live)),
        )
        .service(
            readable("/readyz")
                .route(web::get().to(ready))
                .route(web::head().to(ready)),
        )
        .service(
            readable("/metrics")
                .route(web::get().to(metrics))
                .route(web::head().to(metrics)),
        )
        .default_service(web::to(not_found));
}
