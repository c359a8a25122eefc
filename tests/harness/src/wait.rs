use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks until there is a value, every 10 ms.
///
/// # Errors
/// None within the deadline; tells the last error of `ask`, which is otherwise no end.
pub async fn eventually<T, F>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        let last = match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > deadline {
            match last {
                Some(error) => {
                    return Err(error.context(format!("{what}: not within {deadline:?}")));
                }
                None => bail!("{what}: not within {deadline:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
