-- Releases, snapshots, students, gates, causes, promotions and routes: each an event, so all can be rebuilt.
CREATE TABLE releases (event INTEGER, teacher VARCHAR, teacher_version VARCHAR, teacher_hash VARCHAR, released VARCHAR);
CREATE TABLE snapshots (
    event INTEGER, snapshot_id VARCHAR, name VARCHAR, teacher_hash VARCHAR, n_samples BIGINT, n_dropped BIGINT,
    created VARCHAR
);
-- role: candidate (may be gated and promoted) or probe (trained to find a cause). student_id is the artefact's hash
CREATE TABLE students (
    event INTEGER, student_id VARCHAR, folder VARCHAR, recipe VARCHAR, precision VARCHAR, role VARCHAR,
    snapshot_id VARCHAR, teacher_hash VARCHAR, parent VARCHAR, seed BIGINT, created VARCHAR, change VARCHAR
);
CREATE TABLE gates (
    gate_no INTEGER, gate_id VARCHAR, student_id VARCHAR, teacher_hash VARCHAR, split VARCHAR, role VARCHAR,
    candidate INTEGER, alpha DOUBLE, verdict VARCHAR, n_draws BIGINT, n_unpaired BIGINT, student_plan VARCHAR, created VARCHAR
);
CREATE TABLE gate_rows (
    gate_no INTEGER, slice VARCHAR, metric VARCHAR, contrast VARCHAR, n_seeds BIGINT, n_draws BIGINT, estimate DOUBLE,
    low DOUBLE, high DOUBLE, band DOUBLE, side VARCHAR, verdict VARCHAR, reason VARCHAR, needed_draws BIGINT,
    alpha DOUBLE, p_fail DOUBLE, p_holm DOUBLE
);
CREATE TABLE causes (
    event INTEGER, gate_id VARCHAR, slice VARCHAR, cause VARCHAR, remedy VARCHAR, evidence VARCHAR, created VARCHAR
);
-- stage: shadow, canary, bulk or rollback
CREATE TABLE promotions (
    event INTEGER, student_id VARCHAR, teacher_hash VARCHAR, stage VARCHAR, gate_id VARCHAR, confirm_id VARCHAR,
    created VARCHAR, note VARCHAR
);
-- the routing table that each promotion left: `share` of a slice's traffic goes to `student_id`, the rest to `fallback`
-- (teacher, or an older student), and `horizon_s` is how far the student's rollouts can be trusted
CREATE TABLE routes (
    event INTEGER, slice VARCHAR, student_id VARCHAR, share DOUBLE, fallback VARCHAR, horizon_s DOUBLE, reason VARCHAR
);
