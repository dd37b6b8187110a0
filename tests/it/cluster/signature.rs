//! Signatures of S3 requests (AWS Signature Version 4), made here: whoever checks the product shares no code with it. moto
//! looks at none, RadosGW checks each. It signs what the tests' own client sends, and no stream.

use chrono::Utc;
use sha2::{Digest, Sha256};

use super::http::Head;
use crate::servers::{ACCESS_KEY, REGION, SECRET_KEY};

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// Signs a request. Its query, if any, has a value for each name, and all of it is percent-encoded.
pub fn sign(head: &mut Head, content: &[u8]) {
    let now = Utc::now();
    let (day, moment) = (now.format("%Y%m%d").to_string(), now.format("%Y%m%dT%H%M%SZ").to_string());
    head.set("x-amz-content-sha256", hex(&Sha256::digest(content)));
    head.set("x-amz-date", &moment);
    let target = head.first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut query: Vec<&str> = query.split('&').collect();
    query.sort_unstable();
    let signed = ["host", "x-amz-content-sha256", "x-amz-date"];
    let header = |name: &&str| format!("{name}:{}\n", head.get(name).unwrap_or_default());
    let headers: String = signed.iter().map(header).collect();
    let names = signed.join(";");
    let hash = head.get("x-amz-content-sha256").unwrap_or_default();
    let request = format!("{}\n{path}\n{}\n{headers}\n{names}\n{hash}", head.method(), query.join("&"));
    let scope = format!("{day}/{REGION}/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}", hex(&Sha256::digest(request)));
    let secret = format!("AWS4{SECRET_KEY}").into_bytes();
    let key = [&*day, REGION, "s3", "aws4_request"].iter().fold(secret, |key, part| keyed(&key, part));
    let signature = hex(&keyed(&key, &text));
    head.set(
        "Authorization",
        format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}"),
    );
}

/// HMAC-SHA256 with a key that fits into a block.
fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    let pad = |with: u8| -> Vec<u8> { (0..BLOCK).map(|i| key.get(i).copied().unwrap_or(0) ^ with).collect() };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_keyed_hash_is_that_of_rfc_4231() {
    let hash = hex(&keyed(b"Jefe", "what do ya want for nothing?"));
    assert_eq!(hash, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}
