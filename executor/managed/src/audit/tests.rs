//! That lines are on disk before anything may be sent, and that nothing can be done to them unseen.

use rowmill_jobs::store::local::LocalStore;

use super::*;

fn intent(number: u32) -> Intent {
    Intent { shard: number, provider: "openai".into(), columns: vec!["body".into()], rows: 1, ..Intent::default() }
}

fn ok() -> Ending {
    Ending { class: Ending::class_of(None), status: Some(200), nano_usd: 42, ..Ending::default() }
}

/// A closed audit of some requests, as its bytes.
async fn written(requests: u32) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::open(folder.path(), "run", "executor", None).await.unwrap();
    for number in 0..requests {
        let intended = audit.intend(intent(number)).await.unwrap();
        audit.end(intended, ok()).await.unwrap();
    }
    let path = audit.path().to_path_buf();
    audit.close(None).await.unwrap();
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn an_intent_is_in_the_file_when_it_may_be_sent() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::open(folder.path(), "run", "executor", None).await.unwrap();
    let first = audit.intend(intent(7)).await.unwrap();
    let second = audit.intend(intent(8)).await.unwrap();
    // As a process that is killed here leaves it.
    let report = verify(folder.path()).unwrap().files.remove(0);
    assert_eq!((report.lines, report.intents, report.closed), (3, 2, false));
    assert_eq!(report.without_ending, [first.seq(), second.seq()]);
    audit.end(first, ok()).await.unwrap();
    audit.close(None).await.unwrap();
    let report = verify(folder.path()).unwrap().files.remove(0);
    assert_eq!((report.without_ending, report.closed, report.broken), (vec![second.seq()], true, None));
}

#[tokio::test]
async fn whatever_is_done_to_a_line_is_found() {
    let bytes = written(4).await;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(verify_lines("as written", &bytes).is_whole());
    let is_found = |what: &str, changed: &[u8]| {
        assert!(!verify_lines(what, changed).is_whole(), "{what}: {}", String::from_utf8_lossy(changed));
    };
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 1;
        is_found(&format!("byte {position} changed"), &changed);
        is_found(&format!("byte {position} removed"), &[&bytes[..position], &bytes[position + 1..]].concat());
    }
    for first in 0..lines.len() {
        let removed: Vec<&[u8]> =
            lines.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, line)| *line).collect();
        is_found(&format!("line {first} removed"), &removed.concat());
        for second in 0..lines.len() {
            let mut inserted = lines.clone();
            inserted.insert(second, lines[first]);
            is_found(&format!("line {first} put in at {second}"), &inserted.concat());
            let mut swapped = lines.clone();
            swapped.swap(first, second);
            if first != second {
                is_found(&format!("lines {first} and {second} swapped"), &swapped.concat());
            }
        }
    }
    let other = written(4).await;
    let foreign = other.split_inclusive(|byte| *byte == b'\n').nth(3).unwrap();
    let mut mixed = lines.clone();
    mixed[3] = foreign;
    is_found("a line of another audit", &mixed.concat());
}

#[tokio::test]
async fn the_break_is_named_with_its_line() {
    let text = String::from_utf8(written(3).await).unwrap();
    let changed = text.replacen("\"nano_usd\":42", "\"nano_usd\":41", 1);
    let broken = verify_lines("x", changed.as_bytes()).broken.unwrap();
    assert_eq!(broken.line, 3);
    assert!(broken.why.contains("changed"), "{}", broken.why);
}

/// A killed process leaves any beginning of what it wrote.
#[tokio::test]
async fn a_cut_end_is_reported_and_breaks_nothing() {
    let bytes = written(3).await;
    for length in 0..bytes.len() {
        let report = verify_lines("cut", &bytes[..length]);
        assert_eq!(report.broken, None, "{length}");
        assert!(!report.closed);
        let ends_whole = length == 0 || bytes[length - 1] == b'\n';
        assert_eq!(report.cut_bytes == 0, ends_whole, "{length}");
    }
}

#[tokio::test]
async fn copies_in_the_store_are_the_same_chain() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path().join("out"));
    let audit = Audit::open(&folder.path().join("audit"), "run", "executor", None).await.unwrap();
    for number in 0..5 {
        let intended = audit.intend(intent(number)).await.unwrap();
        audit.end(intended, ok()).await.unwrap();
        audit.copy(&store).await.unwrap();
    }
    audit.close(Some(&store)).await.unwrap();
    let report = verify_copies(&store, "run").await.unwrap();
    assert_eq!(report.files.len(), 1);
    assert!(report.files[0].is_whole() && report.files[0].intents == 5, "{report:?}");
    std::fs::remove_file(folder.path().join("out").join(layout::audit_segment("run", "executor", 2))).unwrap();
    assert!(verify_copies(&store, "run").await.unwrap().first_broken().is_some());
}

#[tokio::test]
async fn an_audit_is_never_written_over_and_without_a_folder_nothing_begins() {
    let folder = tempfile::tempdir().unwrap();
    let _audit = Audit::open(folder.path(), "run", "executor", None).await.unwrap();
    assert!(Audit::open(folder.path(), "run", "executor", None).await.is_err());
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Audit::open(&folder.path().join("file"), "run", "executor", None).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("[audit] folder"));
}

/// A full disk: every intent fails from then on, also when there is room again.
#[test]
fn after_a_failed_write_nothing_is_permitted_any_more() {
    let full = File::options().append(true).open("/dev/full").unwrap();
    let durable = Arc::new(AtomicU64::new(0));
    let mut writer = Writer {
        file: full,
        path: "audit".into(),
        seq: 0,
        hash: [0; 32],
        bytes: 0,
        failed: None,
        durable: durable.clone(),
    };
    let group = [Waiting { said: Some(Said::Intent(intent(0))), written: None }];
    assert!(writer.write(&group).is_err());
    writer.file = tempfile::tempfile().unwrap();
    assert!(writer.write(&group).is_err());
    assert_eq!(durable.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn the_same_key_signs_the_same_and_shows_itself_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretString::from("canary-key");
    let one = Audit::open(folder.path(), "run", "one", Some(&key)).await.unwrap();
    let two = Audit::open(folder.path(), "run", "two", Some(&key)).await.unwrap();
    let drawn = Audit::open(folder.path(), "run", "three", None).await.unwrap();
    assert_eq!(one.sign(b"body"), two.sign(b"body"));
    assert_ne!(one.sign(b"body"), drawn.sign(b"body"));
    assert!(!format!("{one:?}").contains("canary"));
}

/// What waits when the disk is free is one write, however many wait.
#[test]
fn calls_that_arrive_together_share_a_write() {
    let (lines, waiting) = mpsc::channel(WAITING_MAX);
    let mut answers = Vec::new();
    for number in 0..1_500 {
        let (written, answer) = oneshot::channel();
        lines.try_send(Waiting { said: Some(Said::Intent(intent(number))), written: Some(written) }).unwrap();
        answers.push(answer);
    }
    drop(lines);
    let (file, durable) = (tempfile::tempfile().unwrap(), Arc::new(AtomicU64::new(0)));
    let writer =
        Writer { file, path: "audit".into(), seq: 0, hash: [0; 32], bytes: 0, failed: None, durable: durable.clone() };
    assert_eq!(writer.run(waiting), 2);
    for (mut answer, seq) in answers.into_iter().zip(0..) {
        assert_eq!(answer.try_recv().unwrap().unwrap(), seq);
    }
    assert!(durable.load(Ordering::Acquire) > 0);
}

/// Many at once: every call has its own number, and its line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_from_everywhere_are_all_there() {
    const CALLERS: u32 = 64;
    const CALLS: u32 = 60;
    let folder = tempfile::tempdir().unwrap();
    let audit = Arc::new(Audit::open(folder.path(), "run", "executor", None).await.unwrap());
    let started = std::time::Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let audit = Arc::clone(&audit);
        tokio::spawn(async move {
            for _ in 0..CALLS {
                let intended = audit.intend(intent(caller)).await.unwrap();
                audit.end(intended, ok()).await.unwrap();
            }
        })
    });
    for caller in futures::future::join_all(callers).await {
        caller.unwrap();
    }
    println!("{:.0} audited calls a second", f64::from(CALLERS * CALLS) / started.elapsed().as_secs_f64());
    Arc::into_inner(audit).unwrap().close(None).await.unwrap();
    let report = verify(folder.path()).unwrap().files.remove(0);
    assert!(report.is_whole());
    assert_eq!((report.intents, report.without_ending.len()), (u64::from(CALLERS * CALLS), 0));
}
