//! The bare minimum that every figure is held against: axum, a route that sends the body back, and one that reads it whole and sends its
//! length back.

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let router = Router::new()
            .route("/score", post(async |body: Bytes| body))
            .route("/read", post(async |body: Bytes| body.len().to_string()));
        axum::serve(
            axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))),
            router,
        )
        .await?;
        Ok(())
    })
}
