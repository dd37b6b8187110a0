//! What is found, what is not, and that whatever was replaced comes back.

use super::*;

fn redactor() -> Redactor {
    Redactor::new(&SecretString::from("a key"), "run", None, &BTreeMap::new()).unwrap()
}

/// What the detectors make of a text, with names in place of pseudonyms.
fn seen(text: &str) -> String {
    let redactor = redactor();
    let redacted = redactor.redact(text, &mut Vault::default()).unwrap();
    redactor.pseudonym.replace_all(&redacted, "<$1$2>").into_owned()
}

#[test]
fn what_is_found() {
    for (text, expected) in [
        ("write to ann.o'hara+x@mail.example.co.uk today", "write to <EMAIL> today"),
        ("<müller@exämple.de>", "<<EMAIL>>"),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", "IBAN <IBAN> BIC COBADEFF"),
        ("gb82west12345698765432", "<IBAN>"),
        ("NO93 8601 1117 947.", "<IBAN>."),
        ("card 4111 1111 1111 1111 12/28", "card <CARD> 12/28"),
        ("card 4111 1111 1111 1111 123", "card <CARD> 123"),
        ("5500-0055-5555-5559, 378282246310005", "<CARD>, <CARD>"),
        ("1 4111111111111111", "1 <CARD>"),
        ("ssn 078-05-1120.", "ssn <SSN>."),
        ("call +44 (0)20 7946 0958 or 0049 30 901820", "call <PHONE> or <PHONE>"),
        ("+14155552671", "<PHONE>"),
        ("from 192.168.10.254:8080", "from <IPV4>:8080"),
        ("2001:db8::ff00:42:8329 and [fe80::1]", "<IPV6> and [<IPV6>]"),
        ("at 2001:db8:0:0:0:0:0:1: refused", "at <IPV6>: refused"),
        ("key sk-proj-abcdefghijklmnop1234 here", "key <KEY> here"),
        ("AKIAIOSFODNN7EXAMPLE", "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmn", "<KEY>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "<KEY>"),
        ("ann@example.com,bob@example.com", "<EMAIL>,<EMAIL>"),
    ] {
        assert_eq!(seen(text), expected, "{text}");
    }
}

#[test]
fn what_only_looks_like_it_stays() {
    for text in [
        "a @ b, @handle, user@localhost",
        "DE89 3712 1244 1532 1130 01 has a wrong check digit",
        "XX89 3712 1244 1532 1130 00 has no country",
        "order 4111 1111 1111 1112",
        "tracking 1234567890123456",
        "id A4111111111111111B",
        "000-12-3456 666-12-3456 912-34-5678 123-00-4567 123-45-0000",
        "part 12-345-67-8901-2",
        "10.000.000 and 1.2.3 and 256.1.1.1 and 1.2.3.4.5",
        "12:30:45 std::vec a::b ::",
        "+12 or 2026-11-22 or 1+1=2",
        "sk-short, task-force, eyJ.eyJ.x",
        "call 555-0100",
        "",
    ] {
        assert_eq!(seen(text), text);
    }
}

/// Known not to be told apart; they are here so that a change is seen.
#[test]
fn what_is_taken_for_something_else() {
    assert_eq!(seen("version 10.4.2.1"), "version <IPV4>");
    assert_eq!(seen("sum +1234567890"), "sum <PHONE>");
    assert_eq!(seen("DE89 3704 0044 0532 0130 01"), "DE89 3704 <PHONE>");
}

/// Numbers that look random, the same every time (splitmix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn whatever_was_replaced_comes_back() {
    let pieces = [
        "ann@example.com",
        "bob@example.com",
        "DE89370400440532013000",
        "4111 1111 1111 1111",
        "078-05-1120",
        "+14155552671",
        "10.0.0.1",
        "fe80::1",
        "sk-proj-abcdefghijklmnop",
        " ",
        "\n",
        "é",
        "日本",
        "\"",
        "\\",
        "EMAIL_",
        "-",
        "1",
        "and",
        ":",
        "@",
        "EMAIL_AAAAAAAAAA",
        "🦀",
        ".",
        ",",
    ];
    let redactor = redactor();
    let mut state = 1;
    let mut replaced = 0;
    for _ in 0..3_000 {
        let length = random(&mut state) % 12;
        let text: String = (0..length).map(|_| pieces[random(&mut state) as usize % pieces.len()]).collect();
        let mut vault = Vault::default();
        let redacted = redactor.redact(&text, &mut vault).unwrap();
        assert_eq!(redactor.restore(&redacted, &vault).text, text);
        assert_eq!(
            redactor.restore(&redacted.to_lowercase(), &vault).unknown,
            redactor.restore(&redacted, &vault).unknown
        );
        let json = serde_json::json!({ "answer": [redacted] }).to_string();
        let restored = redactor.restore_json(&json, &vault).unwrap().text;
        assert_eq!(restored, serde_json::json!({ "answer": [text] }).to_string());
        replaced += vault.counts().values().sum::<u64>();
    }
    assert!(replaced > 2_000, "{replaced}");
}

#[test]
fn pseudonyms_are_the_same_in_a_run_and_others_in_another() {
    let of = |key: &str, run: &str, text: &str| {
        let redactor = Redactor::new(&SecretString::from(key), run, None, &BTreeMap::new()).unwrap();
        redactor.redact(text, &mut Vault::default()).unwrap()
    };
    assert_eq!(of("key", "run", "ann@example.com"), of("key", "run", "ann@example.com"));
    assert_ne!(of("key", "run", "ann@example.com"), of("key", "run", "bob@example.com"));
    assert_ne!(of("key", "run", "ann@example.com"), of("key", "rerun", "ann@example.com"));
    assert_ne!(of("key", "run", "ann@example.com"), of("another", "run", "ann@example.com"));
}

#[test]
fn a_pseudonym_that_was_never_given_is_counted_and_stays() {
    let restored = redactor().restore("EMAIL_ABCDEFGHIJ and OTHER_ABCDEFGHIJ", &Vault::default());
    assert_eq!(restored, Restored { text: "EMAIL_ABCDEFGHIJ and OTHER_ABCDEFGHIJ".into(), unknown: 1 });
}

#[test]
fn it_fails_closed() {
    let too_long = "x".repeat(BYTES_MAX + 1);
    assert!(redactor().redact(&too_long, &mut Vault::default()).is_err());
    let make = |detectors: Option<&[String]>, patterns: &[(&str, &str)]| {
        let patterns = patterns.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Redactor::new(&SecretString::from("key"), "run", detectors, &patterns)
    };
    assert!(make(Some(&["NAMES".to_owned()]), &[]).is_err());
    assert!(make(None, &[("CASE", "[")]).is_err());
    assert!(make(None, &[("lower", "x")]).is_err());
    assert!(make(None, &[("HUGE", r"\w{1000}{1000}")]).is_err());
}

#[test]
fn the_operators_patterns_go_first_and_nothing_of_a_row_is_shown() {
    let patterns = [("CASE".to_owned(), r"\bC-\d{6}\b".to_owned())].into();
    let redactor = Redactor::new(&SecretString::from("key"), "run", Some(&["EMAIL".to_owned()]), &patterns).unwrap();
    let mut vault = Vault::default();
    let redacted = redactor.redact("C-123456 of ann@example.com at 10.0.0.1", &mut vault).unwrap();
    assert!(
        redacted.starts_with("<CASE_") && redacted.ends_with("at 10.0.0.1") && !redacted.contains("ann"),
        "{redacted}"
    );
    assert_eq!(format!("{vault:?}"), r#"Vault { counts: {"CASE": 1, "EMAIL": 1}, .. }"#);
}

/// A text made to be searched again and again takes a time in proportion to its length.
#[test]
fn hostile_text_is_searched_in_bounded_time() {
    let time = |length: usize| {
        let texts = ["1 ", "a@", "DE89 ", ":", "eyJ", "+1(", "-----BEGIN PRIVATE KEY-----A"]
            .map(|piece| piece.repeat(length / piece.len()));
        let started = std::time::Instant::now();
        for text in &texts {
            redactor().redact(text, &mut Vault::default()).unwrap();
        }
        started.elapsed()
    };
    let (short, long) = (time(5_000), time(50_000));
    assert!(long < short * 40 + std::time::Duration::from_secs(1), "5 kB took {short:?}, 50 kB {long:?}");
}
