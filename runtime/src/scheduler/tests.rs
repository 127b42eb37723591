use super::core::CALM_CALLS;
use super::*;
use outrigger_protocol::error::ErrorCode;

fn limits(items: usize) -> Limits {
    Limits { items, bytes: 1 << 20, wait: Duration::from_secs(5), ageing: Duration::from_secs(1) }
}

fn scheduler(slots: usize, items: usize) -> (Arc<Busy>, Arc<Scheduler>) {
    let busy = Busy::new(slots);
    (Arc::clone(&busy), Scheduler::new(busy, slots, limits(items)))
}

fn terms(admission: Admission) -> Terms {
    Terms { caller: 0, priority: Priority::Normal, kind: 0, bytes: 0, admission, deadline: None }
}

const AHEAD: fn() -> Terms = || terms(Admission::Ahead);
const NOW: fn() -> Terms = || terms(Admission::Now);

fn within(time: Duration) -> Terms {
    Terms { deadline: Some(Instant::now() + time), ..NOW() }
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// Executes calls that take so long, so that the scheduler knows.
async fn teach(scheduler: &Arc<Scheduler>, time: Duration) {
    for _ in 0..4 {
        let mut slot = scheduler.admit(NOW()).await.unwrap();
        slot.begin();
        tokio::time::advance(time).await;
        slot.finish(Outcome::Answered);
    }
}

#[tokio::test(start_paused = true)]
async fn slots_are_handed_on_in_order() {
    let (busy, scheduler) = scheduler(1, 10);
    let mut first = scheduler.admit(AHEAD()).await.unwrap();
    first.begin();
    let mut order = tokio::task::JoinSet::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for number in 0..3 {
        let (scheduler, seen) = (Arc::clone(&scheduler), Arc::clone(&seen));
        order.spawn(async move {
            let slot = scheduler.admit(AHEAD()).await.unwrap();
            seen.lock().unwrap().push(number);
            slot.finish(Outcome::Answered);
        });
        tokio::task::yield_now().await;
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(busy.snapshot().queued, 3);
    assert!(busy.snapshot().oldest_wait_seconds.is_some());
    first.finish(Outcome::Answered);
    while order.join_next().await.is_some() {}
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
    let end = busy.snapshot();
    assert_eq!((end.executing, end.queued, end.answered), (0, 0, 4));
    assert_eq!(end.oldest_wait_seconds, None);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_and_a_long_wait_are_refusals() {
    let (busy, scheduler) = scheduler(1, 1);
    let mut held = scheduler.admit(AHEAD()).await.unwrap();
    held.begin();
    let waiter = tokio::spawn({
        let scheduler = Arc::clone(&scheduler);
        async move { scheduler.admit(AHEAD()).await.err() }
    });
    tokio::task::yield_now().await;
    let refused = scheduler.admit(AHEAD()).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after.is_some());
    let late = waiter.await.unwrap().unwrap();
    assert!(late.code == ErrorCode::Overloaded && late.message.contains("queue.wait"), "{late}");
    assert_eq!(busy.snapshot().refused, 2);
    assert_eq!(busy.snapshot().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_nothing_still_fills_the_slots_and_bytes_are_bounded() {
    let (_, none) = scheduler(2, 0);
    let (first, second) = (none.admit(NOW()).await, none.admit(NOW()).await);
    assert!(first.is_ok() && second.is_ok() && none.admit(NOW()).await.is_err());

    let (_, bounded) = scheduler(1, 10);
    let large = || Terms { bytes: 600 << 10, ..NOW() };
    let _held = bounded.admit(large()).await.unwrap();
    let mut first = Box::pin(bounded.admit(large()));
    assert!(poll_once(&mut first).await.is_none());
    let error = bounded.admit(large()).await.err().unwrap();
    assert!(error.message.contains("queue.bytes"), "{error}");
    drop(first);
    let mut again = Box::pin(bounded.admit(large()));
    assert!(poll_once(&mut again).await.is_none(), "the bytes are free again");
}

#[tokio::test(start_paused = true)]
async fn what_would_wait_in_vain_is_refused_at_once_with_the_time_to_come_back() {
    let (_, scheduler) = scheduler(1, 100);
    teach(&scheduler, Duration::from_secs(2)).await;
    let mut held = scheduler.admit(NOW()).await.unwrap();
    held.begin();
    // Slots are free after 2, 4 and 6 seconds; the longest wait is 5.
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(Box::pin(scheduler.admit(NOW())));
        assert!(poll_once(waiting.last_mut().unwrap()).await.is_none());
    }
    let refused = scheduler.admit(NOW()).await.err().unwrap();
    assert!(refused.message.contains("will be free in time (queue.wait)"), "{refused}");
    assert_eq!(refused.retry_after, Some(Duration::from_secs(1)));
    waiting.pop();

    let refused = scheduler.admit(within(Duration::from_millis(5500))).await.err().unwrap();
    assert!(refused.code == ErrorCode::Overloaded && refused.message.contains("deadline"), "{refused}");
    let mut met = Box::pin(scheduler.admit(within(Duration::from_secs(7))));
    assert!(poll_once(&mut met).await.is_none(), "this one can be met");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_and_is_counted() {
    let (busy, scheduler) = scheduler(1, 10);
    let over = scheduler.admit(within(Duration::ZERO)).await.err().unwrap();
    assert_eq!(over.code, ErrorCode::DeadlineExceeded);
    let _held = scheduler.admit(NOW()).await.unwrap();
    // Nobody knows yet how long calls take.
    let begun = Instant::now();
    let over = scheduler.admit(within(Duration::from_millis(50))).await.err().unwrap();
    assert_eq!((over.code, begun.elapsed().as_millis()), (ErrorCode::DeadlineExceeded, 50));
    let seen = busy.snapshot();
    assert_eq!((seen.expired, seen.refused, seen.queued, seen.arrived), (2, 0, 1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_few_calls_finds_a_place_in_a_queue_that_another_has_filled() {
    let (busy, scheduler) = scheduler(1, 3);
    let _held = scheduler.admit(NOW()).await.unwrap();
    let mut greedy: Vec<_> = (0..3).map(|_| Box::pin(scheduler.admit(NOW()))).collect();
    for call in &mut greedy {
        assert!(poll_once(call).await.is_none());
    }
    let mut other = Box::pin(scheduler.admit(Terms { caller: 1, ..NOW() }));
    assert!(poll_once(&mut other).await.is_none());
    let displaced = poll_once(&mut greedy[2]).await.unwrap().err().unwrap();
    assert!(displaced.code == ErrorCode::Overloaded && displaced.message.contains("other callers"));
    // Each has as much as the other, about; and what is urgent displaces what is not.
    assert!(scheduler.admit(Terms { caller: 1, ..NOW() }).await.is_err());
    let mut urgent = Box::pin(scheduler.admit(Terms { priority: Priority::High, caller: 1, ..NOW() }));
    assert!(poll_once(&mut urgent).await.is_none());
    assert!(poll_once(&mut greedy[1]).await.unwrap().is_err());
    assert_eq!((busy.snapshot().refused, busy.snapshot().queued), (3, 4));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_queue_and_no_slot_is_lost() {
    let (busy, scheduler) = scheduler(1, 10);
    let held = scheduler.admit(AHEAD()).await.unwrap();
    for _ in 0..3 {
        let waiter = tokio::spawn({
            let scheduler = Arc::clone(&scheduler);
            async move { scheduler.admit(AHEAD()).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        waiter.abort();
        assert!(waiter.await.unwrap_err().is_cancelled());
    }
    // One more that is dropped after its slot was handed to it, before it ran again.
    let mut future = Box::pin(scheduler.admit(AHEAD()));
    assert!(poll_once(&mut future).await.is_none());
    held.finish(Outcome::Answered);
    drop(future);
    assert_eq!((busy.snapshot().queued, busy.snapshot().cancelled), (0, 4));
    assert!(scheduler.admit(AHEAD()).await.is_ok(), "the slot is free again");
}

#[tokio::test(start_paused = true)]
async fn fast_calls_come_ahead_and_count_as_queued_until_they_begin() {
    let (busy, scheduler) = scheduler(1, 10);
    scheduler.set_ahead(1);
    let mut first = scheduler.admit(AHEAD()).await.unwrap();
    first.begin();
    let mut second = Box::pin(scheduler.admit(AHEAD()));
    assert!(poll_once(&mut second).await.is_none(), "nobody knows yet whether calls are fast");
    drop(second);
    drop(first);
    for _ in 0..CALM_CALLS {
        let mut fast = scheduler.admit(AHEAD()).await.unwrap();
        fast.begin();
        fast.finish(Outcome::Answered);
    }
    let mut first = scheduler.admit(AHEAD()).await.unwrap();
    first.begin();
    let mut second = scheduler.admit(AHEAD()).await.unwrap();
    assert_eq!((busy.snapshot().executing, busy.snapshot().queued), (1, 1));
    let mut now = Box::pin(scheduler.admit(NOW()));
    assert!(poll_once(&mut now).await.is_none(), "this kind waits for a slot");
    first.finish(Outcome::Answered);
    second.begin();
    assert_eq!((busy.snapshot().executing, busy.snapshot().queued), (1, 1));
    second.finish(Outcome::Answered);
    assert!(poll_once(&mut now).await.is_some());
}

#[tokio::test]
async fn closing_tells_all_who_wait() {
    let (_, scheduler) = scheduler(1, 10);
    let _held = scheduler.admit(NOW()).await.unwrap();
    let mut waiting = Box::pin(scheduler.admit(NOW()));
    assert!(poll_once(&mut waiting).await.is_none());
    scheduler.close();
    assert_eq!(waiting.await.err().unwrap().code, ErrorCode::Draining);
    assert_eq!(scheduler.admit(NOW()).await.err().unwrap().code, ErrorCode::Draining);
}

#[tokio::test]
async fn callers_that_come_and_go_leave_nothing_behind() {
    let (_, scheduler) = scheduler(1, 10);
    let _held = scheduler.admit(NOW()).await.unwrap();
    let mut head = Box::pin(scheduler.admit(NOW()));
    assert!(poll_once(&mut head).await.is_none());
    for _ in 0..1000 {
        let mut gone = Box::pin(scheduler.admit(within(Duration::from_secs(1))));
        assert!(poll_once(&mut gone).await.is_none());
    }
    assert_eq!(scheduler.lock().core.waiting(), 1);
}

#[tokio::test]
async fn draining_refuses() {
    let (busy, scheduler) = scheduler(1, 1);
    busy.set_draining();
    assert_eq!(scheduler.admit(AHEAD()).await.err().unwrap().code, ErrorCode::Draining);
}
