//! TLS as libpq means it: what each `sslmode` verifies, and with which files.
//!
//! "SSL Support" in PostgreSQL's chapter on libpq has the rules. One differs: a certificate must name its server in a
//! subject alternative name, as its common name is not looked at.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How TLS is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the server takes nothing else.
    Allow,
    /// Where the server can.
    Prefer,
    /// Always. The server is verified where there is a file of authorities.
    Require,
    /// Always, by a server whose certificate an authority has signed.
    VerifyCa,
    /// Always, by a server whose certificate an authority has signed, and which names it.
    VerifyFull,
}

impl SslMode {
    /// What the setting may be.
    pub const EXPECTED: &str = "disable, allow, prefer, require, verify-ca or verify-full";

    /// Whether each attempt to connect is to use TLS.
    pub fn attempts(self) -> &'static [bool] {
        match self {
            SslMode::Disable => &[false],
            SslMode::Allow => &[false, true],
            SslMode::Prefer => &[true, false],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
        }
    }
}

impl FromStr for SslMode {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return Err(()),
        })
    }
}

/// The files of TLS, and whether they were named: a file that is only a default may be absent.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// The authorities; `system` means the system's own.
    pub root: Option<(PathBuf, bool)>,
    /// The client's certificate.
    pub certificate: Option<(PathBuf, bool)>,
    /// Its key.
    pub key: Option<(PathBuf, bool)>,
}

/// Files that do not do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{keyword} {}: {source}", path.display())]
    File {
        /// Which.
        keyword: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A server is to be verified, and there is no file of authorities.
    #[error(
        "sslmode {0} needs authorities: there is no sslrootcert, neither named nor in ~/.postgresql/root.crt"
    )]
    NoRoot(&'static str),
    /// A file without certificates.
    #[error("sslrootcert {} has no certificate", .0.display())]
    EmptyRoot(PathBuf),
    /// A certificate without its key.
    #[error("sslcert {} has no sslkey", .0.display())]
    NoKey(PathBuf),
    /// The authorities or the client's certificate.
    #[error("the certificates do not work")]
    Certificates(#[source] rustls::Error),
}

/// What tokio-postgres connects with.
///
/// # Errors
/// The files do not do.
pub fn connector(mode: SslMode, files: &TlsFiles) -> Result<MakeRustlsConnect, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(mode, files, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificates)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some((chain, key)) = client(files)? else {
        return Ok(MakeRustlsConnect::new(builder.with_no_client_auth()));
    };
    Ok(MakeRustlsConnect::new(builder.with_client_auth_cert(chain, key).map_err(TlsError::Certificates)?))
}

/// Whether a file is to be read: it was named, or is there.
fn used(file: Option<&(PathBuf, bool)>) -> Option<PathBuf> {
    file.filter(|(path, is_named)| *is_named || path.exists()).map(|(path, _)| path.clone())
}

fn verifier(
    mode: SslMode,
    files: &TlsFiles,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<Verifier>, TlsError> {
    let (wants_root, checks_name) = match mode {
        SslMode::VerifyFull => (Some("verify-full"), true),
        SslMode::VerifyCa => (Some("verify-ca"), false),
        SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => (None, false),
    };
    // As in libpq, a file of authorities makes verify-ca of require; weaker modes verify nothing.
    let root = used(files.root.as_ref()).filter(|_| wants_root.is_some() || mode == SslMode::Require);
    let authorities = match (root, wants_root) {
        (None, None) => None,
        (None, Some(mode)) => return Err(TlsError::NoRoot(mode)),
        (Some(path), _) => {
            let built = WebPkiServerVerifier::builder_with_provider(roots(path)?.into(), provider.clone());
            let error =
                |error: rustls::client::VerifierBuilderError| rustls::Error::General(error.to_string());
            Some(built.build().map_err(|source| TlsError::Certificates(error(source)))?)
        }
    };
    Ok(Arc::new(Verifier { authorities, checks_name, provider: provider.clone() }))
}

fn roots(path: PathBuf) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if path.as_os_str() == "system" {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        roots.add_parsable_certificates(certificates("sslrootcert", &path)?);
    }
    if roots.is_empty() { Err(TlsError::EmptyRoot(path)) } else { Ok(roots) }
}

fn certificates(keyword: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|source| TlsError::File { keyword, path: path.clone(), source })
}

/// The client's certificate and its key, where there is one.
fn client(
    files: &TlsFiles,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
    let Some(path) = used(files.certificate.as_ref()) else { return Ok(None) };
    let chain = certificates("sslcert", &path)?;
    let key = used(files.key.as_ref()).ok_or(TlsError::NoKey(path))?;
    let read = PrivateKeyDer::from_pem_file(&key);
    let key = read.map_err(|source| TlsError::File { keyword: "sslkey", path: key, source })?;
    Ok(Some((chain, key)))
}

/// Verifies as much of a server as the mode wants.
#[derive(Debug)]
struct Verifier {
    /// Those whose signature counts; `None` takes any certificate.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    /// Whether the certificate must name the server.
    checks_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        // The name is looked at last, so that nothing else is wrong where it is.
        match authorities.verify_server_cert(end_entity, intermediates, server, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(mode: SslMode, root: Option<(&str, bool)>) -> Option<String> {
        let files = TlsFiles { root: root.map(|(path, named)| (path.into(), named)), ..TlsFiles::default() };
        connector(mode, &files).err().map(|error| error.to_string())
    }

    #[test]
    fn who_verifies_needs_authorities_and_who_does_not_needs_none() {
        assert_eq!(error(SslMode::Require, Some(("/none", false))), None);
        assert_eq!(error(SslMode::Prefer, Some(("/none", true))), None, "it verifies nothing");
        let named = error(SslMode::Require, Some(("/none", true))).expect("it is named");
        assert!(named.starts_with("sslrootcert /none: "), "{named}");
        let absent = error(SslMode::VerifyFull, Some(("/none", false))).expect("none is there");
        assert!(absent.starts_with("sslmode verify-full needs authorities"), "{absent}");
        let dir = tempfile::tempdir().expect("a folder");
        let empty = dir.path().join("root.crt");
        std::fs::write(&empty, "").expect("a file");
        let empty = error(SslMode::VerifyCa, empty.to_str().map(|path| (path, false))).expect("it is empty");
        assert!(empty.ends_with("root.crt has no certificate"), "{empty}");
    }
}
