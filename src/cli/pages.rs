//! Paged lists (AIP-158), collected into one.

use super::error::CliError;

/// Most entries in one page.
const PAGE: u32 = 1000;

/// Returns the entries of a list, at most `limit`. `page` takes a page's size and token, and
/// returns its entries and the next token.
pub(super) async fn all<T>(
    limit: u32,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), CliError>,
) -> Result<Vec<T>, CliError> {
    let (mut entries, mut token, mut left) = (Vec::new(), String::new(), limit);
    loop {
        let size = i32::try_from(left.min(PAGE)).unwrap_or(1);
        let (more, next) = page(size, token).await?;
        left = left.saturating_sub(u32::try_from(more.len()).unwrap_or(u32::MAX));
        entries.extend(more);
        if next.is_empty() {
            return Ok(entries);
        }
        if left == 0 {
            eprintln!(
                "there may be more than these {limit}: raise --limit, or narrow the question"
            );
            return Ok(entries);
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn first(limit: u32, of: u32) -> Vec<u32> {
        let numbers = async |size: i32, token: String| {
            let from: u32 = token.parse().unwrap_or(0);
            let to = of.min(from + u32::try_from(size).unwrap());
            let next = if to < of {
                to.to_string()
            } else {
                String::new()
            };
            Ok(((from..to).collect(), next))
        };
        all(limit, numbers).await.unwrap()
    }

    #[tokio::test]
    async fn pages_are_put_together_up_to_the_limit() {
        assert_eq!(first(u32::MAX, 2500).await.len(), 2500);
        assert_eq!(first(1200, 2500).await, (0..1200).collect::<Vec<_>>());
        assert!(first(10, 0).await.is_empty());
    }
}
