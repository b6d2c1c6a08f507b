//! Rows of docs/performance.md: the promise, and the measurement.

use std::{
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

use credbroker::{client::Settings, domain::clock::wall_time};

use crate::{
    bare::Sdk,
    child::{Child, memory},
    harness::{Key, World as OnEmulator},
    load::{Caller, Connections, Load, Outcome, connected},
    plot::{Point, svg},
    stored,
    world::World,
};

const CALLERS: usize = 64;
const DELAY: Duration = Duration::from_millis(20);
const WARM_UP: Duration = Duration::from_secs(2);
const ROUND: Duration = Duration::from_secs(8);
/// Number of rounds. The machine has other guests, so everything is measured in turn this often,
/// and the median counts.
const ROUNDS: i64 = 3;
const CONNECTIONS: usize = 10_000;
const SESSIONS: i64 = 10_000;
const AT_ONCE: i64 = 10_000;

/// Promise and measurement, and the reason if the promise is not met.
struct Row {
    what: &'static str,
    target: &'static str,
    result: String,
    is_met: bool,
    /// Reason, shown if the promise is not met.
    why: &'static str,
}

impl Row {
    fn because(self, why: &'static str) -> Self {
        Self { why, ..self }
    }
}

type Rows = Vec<Row>;

fn row(what: &'static str, target: &'static str, result: String, is_met: bool) -> Row {
    let done = if is_met { "" } else { " (falls short)" };
    eprintln!("{what}: {result}, asked for {target}{done}");
    Row {
        what,
        target,
        result,
        is_met,
        why: "",
    }
}

fn load(grant: Option<&str>, callers: usize, rate: Option<f64>, duration: Duration) -> Load {
    Load {
        grant: grant.map(ToOwned::to_owned),
        callers,
        rate,
        connections: Connections::Kept,
        duration,
    }
}

async fn sound(load: Load, settings: &Settings) -> Outcome {
    let outcome = load.put(settings).await.unwrap();
    assert!(
        outcome.errors.is_empty(),
        "{}: {:?}",
        outcome.errors.len(),
        outcome.errors[0]
    );
    outcome
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures the selected rows, and prints the page.
pub async fn all(only: &[String], write: bool) {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| name.contains(word));
    let (mut rows, mut curves) = (Rows::new(), Vec::new());
    if wanted("rates") {
        rows.extend(rates().await);
    }
    if wanted("added") {
        rows.extend(added().await);
    }
    if wanted("many") {
        rows.extend(many().await);
    }
    if wanted("idle") {
        rows.push(idle().await);
    }
    if wanted("grown") {
        rows.extend(grown().await);
    }
    if wanted("revoked") {
        rows.push(revoked().await);
    }
    if wanted("plot") {
        curves = plotted().await;
    }
    let page = page(&rows);
    println!("{page}");
    if write {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        if only.is_empty() {
            std::fs::write(docs.join("performance.md"), page).unwrap();
        }
        if !curves.is_empty() {
            std::fs::write(docs.join("performance.svg"), svg(&curves)).unwrap();
        }
    }
}

/// Highest rates of a broker, and their cost.
async fn rates() -> Rows {
    let world = World::new(Duration::ZERO).await;
    let directory = world.site.directory.path().to_str().unwrap();
    let mut empty = Child::start(&["empty", directory]);
    let settings = world.settings();
    let against = Settings {
        address: empty.line().await,
        ..settings.clone()
    };
    for (grant, settings) in [
        (Some("fresh"), &settings),
        (Some("shared"), &settings),
        (None, &against),
    ] {
        sound(load(grant, CALLERS, None, WARM_UP), settings).await;
    }
    let (mut fresh, mut fresh_cpu, mut sdk_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let (mut shared, mut calls, mut echoed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = world.cpu();
        let outcome = sound(load(Some("fresh"), CALLERS, None, ROUND), &settings).await;
        let count = outcome.rate() * outcome.elapsed.as_secs_f64();
        fresh_cpu.push((world.cpu() - before) * 1e6 / count);
        fresh.push(outcome.rate());
        sdk_cpu.push(sdk(&world.endpoint).await);
        let outcome = sound(load(Some("shared"), CALLERS, None, ROUND), &settings).await;
        shared.push(outcome.rate());
        let outcome = sound(load(None, CALLERS, None, ROUND), &against).await;
        calls.push(outcome.rate());
        let outcome = sound(load(None, CALLERS, None, ROUND), &settings).await;
        echoed.push(outcome.rate());
    }
    let (fresh, shared, calls) = (median(fresh), median(shared), median(calls));
    let (fresh_cpu, sdk_cpu) = (median(fresh_cpu), median(sdk_cpu));
    let (ratio, share) = (fresh_cpu / sdk_cpu, shared / calls);
    vec![
        row(
            "fresh `assume_role`, AWS answers at once, 64 callers",
            "2,000/s",
            format!("{fresh:.0}/s"),
            fresh >= 2000.0,
        ),
        row(
            "CPU of the broker for one of these, to that of a bare `AssumeRole` of the SDK",
            "2 times",
            format!("{ratio:.2} times ({fresh_cpu:.0} µs to {sdk_cpu:.0} µs)"),
            ratio <= 2.0,
        )
        .because(
            "more than a third of it is the SDK's call, three tenths are two changes of a lease and their records, \
             each in up to fifteen indexes, a tenth the call of gRPC over TLS",
        ),
        row(
            "shared session, 64 callers, each hand-out durable in the log",
            "8,000/s",
            format!("{shared:.0}/s"),
            shared >= 8000.0,
        ),
        row(
            "the same, to an empty call of tonic over the same TLS",
            "half",
            format!(
                "{share:.2} ({shared:.0}/s to {calls:.0}/s; `WhoAmI`, authenticated and bounded as well: {:.0}/s)",
                median(echoed)
            ),
            share >= 0.5,
        )
        .because(
            "the empty call is not authenticated, not bounded and not recorded: a third of a hand-out is the log, a \
             fifth what stands before it",
        ),
    ]
}

/// CPU time of a bare call of the SDK, microseconds.
async fn sdk(endpoint: &str) -> f64 {
    let (callers, seconds) = (CALLERS.to_string(), ROUND.as_secs().to_string());
    let mut child = Child::start(&["sdk", endpoint, &callers, &seconds]);
    let line = child.line().await;
    let (_, each) = line.split_once(' ').unwrap();
    each.parse().unwrap()
}

/// Latency that the broker adds to a call of AWS, call by call in turn.
async fn added() -> Rows {
    let world = World::new(Duration::ZERO).await;
    let (sdk, settings) = (Sdk::new(&world.endpoint), world.settings());
    let caller = Caller::connected(&settings, "fresh").await.unwrap();
    for _ in 0..200 {
        caller.ask().await.unwrap();
        sdk.assume_role().await;
    }
    let (mut halves, mut latest) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (mut issued, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..1000 {
            let began = Instant::now();
            caller.ask().await.unwrap();
            issued.push(began.elapsed());
            let began = Instant::now();
            sdk.assume_role().await;
            bare.push(began.elapsed());
        }
        issued.sort();
        bare.sort();
        let added =
            |at: usize| (issued[at * 10].saturating_sub(bare[at * 10])).as_secs_f64() * 1000.0;
        halves.push(added(50));
        latest.push(added(99));
    }
    let fsync = fsync(world.site.directory.path());
    let (p50, p99) = (median(halves), median(latest));
    vec![
        row(
            "added to a bare call of the SDK by a fresh issue, one caller, p50",
            "2 ms",
            format!("{p50:.2} ms, of which two writes to the disk of {fsync:.2} ms"),
            p50 < 2.0,
        )
        .because("two transactions, one after the other, with the call to AWS between them"),
        row("the same, p99", "6 ms", format!("{p99:.2} ms"), p99 < 6.0),
    ]
}

/// Time until a write of 4 KiB is durable on the store's disk, milliseconds.
fn fsync(directory: &Path) -> f64 {
    use std::io::Write;
    let mut file = std::fs::File::create(directory.join("fsync")).unwrap();
    let mut took = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    median(took)
}

/// A thousand callers at the same time.
async fn many() -> Rows {
    let world = World::new(DELAY).await;
    let settings = world.settings();
    sound(load(Some("fresh"), 1000, None, WARM_UP), &settings).await;
    let paced = load(Some("fresh"), 1000, Some(1000.0), ROUND)
        .put(&settings)
        .await
        .unwrap();
    let closed = load(Some("fresh"), 1000, None, ROUND)
        .put(&settings)
        .await
        .unwrap();
    let shared = load(Some("shared"), 1000, None, ROUND)
        .put(&settings)
        .await
        .unwrap();
    let told = |outcome: &Outcome| {
        format!(
            "{:.0} ms, {} errors, {:.0}/s",
            outcome.at(0.99),
            outcome.errors.len(),
            outcome.rate()
        )
    };
    let is_met = |outcome: &Outcome| outcome.at(0.99) < 100.0 && outcome.errors.is_empty();
    vec![
        row(
            "1,000 callers, AWS answers after 20 ms, each asks once a second, fresh: p99",
            "100 ms, no errors",
            told(&paced),
            is_met(&paced),
        ),
        row(
            "the same, each asks again at once, fresh: p99",
            "100 ms, no errors",
            told(&closed),
            is_met(&closed),
        )
        .because("a thousand callers who never pause wait for each other: p99 is their number by the rate"),
        row(
            "the same, a shared session: p99",
            "100 ms, no errors",
            told(&shared),
            is_met(&shared),
        )
        .because(
            "a thousand callers who never pause wait for each other: p99 is their number by the rate, and some",
        ),
    ]
}

/// Idle connections that were used once.
async fn idle() -> Row {
    let world = World::new(Duration::ZERO).await;
    let settings = std::sync::Arc::new(world.settings());
    let before = memory(world.id(), "VmRSS");
    let kept = connected(&settings, CONNECTIONS).await.unwrap();
    let with = memory(world.id(), "VmRSS");
    assert_eq!(kept.len(), CONNECTIONS);
    row(
        "10,000 idle TLS connections",
        "1 GiB",
        format!("{with} MiB ({before} MiB without them)"),
        with < 1024,
    )
}

/// Figures with a store of a million leases.
async fn grown() -> Rows {
    let empty = World::new(Duration::ZERO).await;
    let world = World::new(Duration::ZERO).await;
    first_issue(&world.settings()).await;
    let stopped = world.stopped().await;
    stored::fill(&stopped.site).await;
    let began = Instant::now();
    let world = stopped.start();
    let settings = world.settings();
    first_issue(&settings).await;
    let started = began.elapsed().as_secs_f64();

    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (settings, times) in [(&empty.settings(), &mut alone), (&settings, &mut beside)] {
            let outcome = sound(load(Some("fresh"), 16, Some(200.0), ROUND), settings).await;
            times.push((outcome.at(0.5), outcome.at(0.99)));
        }
    }
    let of = |times: &[(f64, f64)], late: bool| {
        median(
            times
                .iter()
                .map(|&(p50, p99)| if late { p99 } else { p50 })
                .collect(),
        )
    };
    let (p50, p99) = (
        of(&beside, false) / of(&alone, false),
        of(&beside, true) / of(&alone, true),
    );
    let resident = memory(world.id(), "VmRSS");

    let (mut quiet, mut ending, mut left) = (Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let outcome = sound(load(Some("fresh"), 16, Some(200.0), ROUND), &settings).await;
        quiet.push(outcome.at(0.99));
        stored::end_at_once(&world.site, round, AT_ONCE).await;
        let outcome = sound(load(Some("fresh"), 16, Some(200.0), ROUND), &settings).await;
        ending.push(outcome.at(0.99));
        left += stored::overdue(&world.site).await;
    }
    let (quiet, ending) = (median(quiet), median(ending));
    let moved = ending / quiet;
    vec![
        row(
            "1,000,000 past and 250,000 live leases: from the start to the first issue",
            "1 s",
            format!("{started:.2} s"),
            started < 1.0,
        ),
        row(
            "the same: latency of an issue to that with an empty store, p50",
            "1.2 times",
            format!(
                "{p50:.2} times ({:.2} ms to {:.2} ms)",
                of(&beside, false),
                of(&alone, false)
            ),
            p50 <= 1.2,
        ),
        row(
            "the same, p99",
            "1.2 times",
            format!(
                "{p99:.2} times ({:.2} ms to {:.2} ms)",
                of(&beside, true),
                of(&alone, true)
            ),
            p99 <= 1.2,
        )
        .because("the slowest hundredth are those that wait for the disk, more and less from run to run"),
        row(
            "the same: resident memory",
            "200 MiB",
            format!("{resident} MiB"),
            resident < 200,
        ),
        row(
            "the same: p99 of an issue while 10,000 leases end at one moment, to that before",
            "1.5 times",
            format!(
                "{moved:.2} times ({ending:.2} ms to {quiet:.2} ms; {left} still to be ended after 6 s)"
            ),
            moved <= 1.5 && left == 0,
        )
        .because(
            "an issue has two commits of its own, and waits for those in which leases end; what is written then is ten \
             times as much as before",
        ),
    ]
}

/// Repeats an issue until it succeeds.
async fn first_issue(settings: &Settings) {
    loop {
        if let Ok(caller) = Caller::connected(settings, "fresh").await
            && caller.ask().await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Revocation of a service with `SESSIONS` sessions, and of a service with one.
async fn revoked() -> Row {
    let world = OnEmulator::new().await;
    let few = shut_out(&world, "few", 1).await;
    let many = shut_out(&world, "many", SESSIONS).await;
    row(
        "a service with 10,000 sessions of a role is revoked",
        "as many calls to AWS as for one session, 2 s",
        format!(
            "{} calls to {}, {:.2} s to {:.2} s",
            many.0,
            few.0,
            many.1.as_secs_f64(),
            few.1.as_secs_f64()
        ),
        many.0 <= few.0 + 2 && many.1 < Duration::from_secs(2),
    )
}

/// Number of calls to AWS of a revocation, and its duration.
async fn shut_out(world: &OnEmulator, service: &str, sessions: i64) -> (usize, Duration) {
    let token = world.service(service).await;
    let issued = world.broker.issue(&token, "role").await;
    let key = Key::issued(&issued);
    assert!(key.is_served().await);
    let copies = format!(
        "WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < {sessions})
         INSERT INTO leases (lease_id, {columns})
         SELECT printf('%026d', n), {values} FROM numbers, (SELECT * FROM leases WHERE service = '{service}') WHERE n <= {sessions}",
        columns = stored::COLUMNS,
        // A request has one lease.
        values = stored::COLUMNS.replace("request_id, request_digest", "NULL, NULL"),
    );
    world.broker.write_store(&copies).await;
    let before = world.proxy.actions().len();
    let began = Instant::now();
    let done = world.broker.json(&["revoke", service]).await;
    let took = began.elapsed();
    assert!(!key.is_served().await, "{done}");
    (world.proxy.actions().len() - before, took)
}

/// Latency at rising rates, up to the highest that the broker reaches.
async fn plotted() -> Vec<(&'static str, Vec<Point>)> {
    let world = World::new(Duration::ZERO).await;
    let settings = world.settings();
    let mut curves = Vec::new();
    for grant in ["fresh", "shared"] {
        let most = sound(load(Some(grant), CALLERS, None, WARM_UP * 2), &settings)
            .await
            .rate();
        let mut points = Vec::new();
        for tenths in 1..10 {
            let rate = most * f64::from(tenths) / 10.0;
            let outcome = sound(
                load(Some(grant), CALLERS, Some(rate), WARM_UP * 2),
                &settings,
            )
            .await;
            points.push((outcome.rate(), outcome.at(0.5), outcome.at(0.99)));
        }
        curves.push((grant, points));
    }
    curves
}

fn page(rows: &[Row]) -> String {
    let mut page =
        include_str!("page.md").replace("{date}", &wall_time().strftime("%Y-%m-%d").to_string());
    page = page.replace("{machine}", &machine());
    let mut table = String::from("| what | target | result | |\n|---|---|---|---|\n");
    for row in rows {
        let short = format!("**falls short**: {}", row.why);
        let met = if row.is_met {
            "met"
        } else {
            short.trim_end_matches(": ")
        };
        writeln!(
            table,
            "| {} | {} | {} | {met} |",
            row.what, row.target, row.result
        )
        .unwrap();
    }
    page.replace("{table}\n", &table)
}

/// Machine of the measurement.
fn machine() -> String {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = about
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |model| model.trim_matches(['\t', ':', ' ']));
    let cores = std::thread::available_parallelism().unwrap();
    format!("{cores} cores ({model}), Linux")
}
