//! Byte budget of a connection, which limits the data of an unknown peer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Error kind for an exhausted budget. HTTP/2 preserves the kind, and no socket returns it.
pub(super) const BUDGET_EXCEEDED: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// Bytes that may be sent to a peer before its first request: HTTP/2 settings, and the replies to
/// the peer's first frames.
const UNSOLICITED_BYTES: usize = 2 * 1024;
/// Bytes read from one connection before other connections get their turn.
const FAIRNESS_QUANTUM: usize = 4 * 1024;

/// Response bytes per byte that the reader may send. It covers `WINDOW_UPDATE` frames, at most
/// about 50 bytes for each 16,000.
const ACK_RATIO: usize = 16;

/// Budget of a peer, bytes: an amount for the first request and everything before it, the same
/// amount for every further request, and a part of the bytes of each answer.
pub(super) struct ByteBudget {
    per_request: usize,
    left: AtomicUsize,
    asked: AtomicBool,
}

impl ByteBudget {
    pub(super) const fn new(per_request: usize) -> Self {
        Self {
            per_request,
            left: AtomicUsize::new(per_request),
            asked: AtomicBool::new(false),
        }
    }

    /// Counts a request. Every request but the first adds to the budget.
    pub(super) fn request(&self) {
        if self.asked.swap(true, Ordering::Relaxed) {
            self.left.fetch_add(self.per_request, Ordering::Relaxed);
        }
    }

    /// Returns whether a request has ever arrived.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Adds the part of the budget that these bytes of an answer allow.
    fn answered(&self, bytes: usize) {
        self.left.fetch_add(bytes / ACK_RATIO, Ordering::Relaxed);
    }

    fn charge_read(&self, bytes: usize) -> io::Result<()> {
        let less = |left: usize| left.checked_sub(bytes);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .map_err(|_| io::Error::new(BUDGET_EXCEEDED, "too much between two requests"))?;
        Ok(())
    }
}

/// A stream that fails if a peer exceeds its budget, or causes too many replies before its first
/// request: HTTP/2 frames may cost the sender less than the receiver.
pub(super) struct BudgetedStream<S> {
    stream: S,
    allowance: Arc<ByteBudget>,
    said_unasked: usize,
    /// Bytes read in the current turn of this connection.
    taken: usize,
}

impl<S> BudgetedStream<S> {
    pub(super) const fn new(stream: S, allowance: Arc<ByteBudget>) -> Self {
        Self {
            stream,
            allowance,
            said_unasked: 0,
            taken: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BudgetedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken >= FAIRNESS_QUANTUM {
            self.taken = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer)?;
        if read.is_pending() {
            self.taken = 0;
        }
        ready!(read);
        let read = buffer.filled().len() - before;
        self.taken += read;
        Poll::Ready(self.allowance.charge_read(read))
    }
}

impl<S: AsyncWrite + Unpin> BudgetedStream<S> {
    fn charge_write(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(bytes)) = written else {
            return written;
        };
        if self.allowance.has_asked() {
            self.allowance.answered(bytes);
            return written;
        }
        self.said_unasked += bytes;
        if self.said_unasked > UNSOLICITED_BYTES {
            return Poll::Ready(Err(io::Error::new(BUDGET_EXCEEDED, "too much to answer")));
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BudgetedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.charge_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.charge_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PER_REQUEST: usize = 1000;

    fn metered() -> (DuplexStream, BudgetedStream<DuplexStream>, Arc<ByteBudget>) {
        let (peer, stream) = duplex(1 << 20);
        let allowance = Arc::new(ByteBudget::new(PER_REQUEST));
        let metered = BudgetedStream::new(stream, Arc::clone(&allowance));
        (peer, metered, allowance)
    }

    /// Sends bytes from the peer and reads them all.
    async fn sends(
        peer: &mut DuplexStream,
        metered: &mut BudgetedStream<DuplexStream>,
        bytes: usize,
    ) -> io::Result<()> {
        peer.write_all(&vec![0; bytes]).await?;
        metered.read_exact(&mut vec![0; bytes]).await.map(drop)
    }

    #[tokio::test]
    async fn each_request_brings_so_much_with_it_and_no_more() {
        let (mut peer, mut metered, allowance) = metered();
        sends(&mut peer, &mut metered, PER_REQUEST).await.unwrap();
        for _ in 0..3 {
            allowance.request();
        }
        // The first request used the budget that was there from the start.
        let two = 2 * PER_REQUEST;
        sends(&mut peer, &mut metered, two).await.unwrap();
        let refused = sends(&mut peer, &mut metered, 1).await.unwrap_err();
        assert_eq!(refused.kind(), BUDGET_EXCEEDED);
    }

    #[tokio::test]
    async fn whoever_reads_a_long_answer_may_say_so() {
        let (mut peer, mut metered, allowance) = metered();
        allowance.request();
        for _ in 0..100 {
            let taken = [0; 16 * 1024];
            metered.write_all(&taken).await.unwrap();
            peer.read_exact(&mut taken.clone()).await.unwrap();
            sends(&mut peer, &mut metered, 50).await.unwrap();
        }
        // Replies to frames without effect add less to the budget than the frames cost.
        let mut pings = 0;
        while sends(&mut peer, &mut metered, 17).await.is_ok() {
            metered.write_all(&[0; 17]).await.unwrap();
            pings += 1;
        }
        assert!((1000..10_000).contains(&pings), "{pings}");
    }

    #[tokio::test]
    async fn little_is_said_to_who_has_asked_nothing() {
        let (_peer, mut metered, allowance) = metered();
        metered.write_all(&[0; UNSOLICITED_BYTES]).await.unwrap();
        let refused = metered.write_all(&[0]).await.unwrap_err();
        assert_eq!(refused.kind(), BUDGET_EXCEEDED);
        allowance.request();
        metered.write_all(&[0; UNSOLICITED_BYTES]).await.unwrap();
    }

    #[tokio::test]
    async fn after_its_turn_a_connection_waits_once() {
        let (mut peer, mut metered, _) = metered();
        peer.write_all(&[0; PER_REQUEST]).await.unwrap();
        metered.taken = FAIRNESS_QUANTUM;
        let mut buffer = [0; PER_REQUEST];
        let mut read = ReadBuf::new(&mut buffer);
        let mut polled = polled_once(&mut metered, &mut read).await;
        assert!(polled.is_pending());
        polled = polled_once(&mut metered, &mut read).await;
        assert!(polled.is_ready());
        assert_eq!(read.filled().len(), PER_REQUEST);
    }

    /// Polls exactly once.
    async fn polled_once(
        metered: &mut BudgetedStream<DuplexStream>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<()> {
        std::future::poll_fn(|context| {
            let polled = Pin::new(&mut *metered).poll_read(context, buffer);
            Poll::Ready(polled.map(Result::unwrap))
        })
        .await
    }
}
