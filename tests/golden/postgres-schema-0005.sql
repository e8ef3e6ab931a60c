-- SPDX-License-Identifier: Apache-2.0
-- A PostgreSQL of schema 0005, in the middle of a run: the first round committed, one update of the second received.
-- Made by pg_dump --inserts of what a server of that schema had written. It stays as it is for ever.

CREATE TABLE public.access_tokens (
    token_hash character varying(64) NOT NULL COLLATE pg_catalog."C",
    worker_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    assertion_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    expires_ms bigint NOT NULL,
    forget_ms bigint NOT NULL
);

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.assignments (
    assignment_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    round bigint NOT NULL,
    version bigint NOT NULL,
    worker_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    slot bigint NOT NULL,
    turn bigint NOT NULL,
    declined_reason text,
    refused_code character varying(64) COLLATE pg_catalog."C",
    lost_ms bigint,
    settled boolean NOT NULL
);

CREATE TABLE public.effects (
    effect_id bigint NOT NULL,
    kind character varying(16) NOT NULL COLLATE pg_catalog."C",
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    round bigint NOT NULL,
    done_ms bigint
);

CREATE SEQUENCE public.effects_effect_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.effects_effect_id_seq OWNED BY public.effects.effect_id;

CREATE TABLE public.events (
    event_id bigint NOT NULL,
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    kind character varying(16) NOT NULL COLLATE pg_catalog."C",
    round bigint,
    at_ms bigint NOT NULL,
    data text NOT NULL
);

CREATE SEQUENCE public.events_event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.events_event_id_seq OWNED BY public.events.event_id;

CREATE TABLE public.join_tokens (
    token_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    secret_hash character varying(64) NOT NULL COLLATE pg_catalog."C",
    label text NOT NULL,
    role character varying(16) NOT NULL COLLATE pg_catalog."C",
    uses_left bigint NOT NULL,
    expires_ms bigint NOT NULL,
    created_ms bigint NOT NULL,
    run_id character varying(64) COLLATE pg_catalog."C",
    approve boolean NOT NULL,
    idle_s bigint,
    revoked_ms bigint
);

CREATE TABLE public.leases (
    effect_id bigint NOT NULL,
    holder character varying(64) NOT NULL COLLATE pg_catalog."C",
    until_ms bigint NOT NULL
);

CREATE TABLE public.members (
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    worker_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    slot bigint,
    turns bigint NOT NULL,
    free_since_ms bigint
);

CREATE TABLE public.metrics (
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    worker_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    report text NOT NULL,
    received_ms bigint NOT NULL
);

CREATE TABLE public.operator_keys (
    secret_hash character varying(64) NOT NULL COLLATE pg_catalog."C",
    key_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    label text NOT NULL,
    scopes text NOT NULL,
    created_ms bigint NOT NULL,
    expires_ms bigint,
    revoked_ms bigint
);

CREATE TABLE public.rounds (
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    number bigint NOT NULL,
    status character varying(16) NOT NULL COLLATE pg_catalog."C",
    deadline_ms bigint NOT NULL,
    state text NOT NULL,
    bytes_up bigint NOT NULL,
    bytes_down bigint NOT NULL,
    metrics text
);

CREATE TABLE public.runs (
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    task character varying(128) NOT NULL COLLATE pg_catalog."C",
    status character varying(16) NOT NULL COLLATE pg_catalog."C",
    spec text NOT NULL,
    state text NOT NULL,
    created_ms bigint NOT NULL
);

CREATE TABLE public.server_identity (
    server_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    created_ms bigint NOT NULL
);

CREATE TABLE public.servers (
    name character varying(64) NOT NULL COLLATE pg_catalog."C",
    seen_ms bigint NOT NULL
);

CREATE TABLE public.state_tensors (
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    digest character varying(64) NOT NULL COLLATE pg_catalog."C"
);

CREATE TABLE public.updates (
    assignment_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    round bigint NOT NULL,
    slot bigint NOT NULL,
    digest character varying(64) NOT NULL COLLATE pg_catalog."C",
    header text NOT NULL,
    received_ms bigint NOT NULL,
    outcome character varying(16) NOT NULL COLLATE pg_catalog."C",
    version bigint,
    reason text,
    collected_ms bigint
);

CREATE TABLE public.uploads (
    upload_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    assignment_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    header text NOT NULL,
    created_ms bigint NOT NULL
);

CREATE TABLE public.versions (
    run_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    round bigint,
    tensors text NOT NULL,
    created_ms bigint NOT NULL,
    collected_ms bigint
);

CREATE TABLE public.workers (
    worker_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    name character varying(64) NOT NULL COLLATE pg_catalog."C",
    key_thumbprint character varying(43) COLLATE pg_catalog."C",
    public_key character varying(43) COLLATE pg_catalog."C",
    token_id character varying(64) COLLATE pg_catalog."C",
    label text NOT NULL,
    run_id character varying(64) COLLATE pg_catalog."C",
    idle_s bigint,
    role character varying(16) NOT NULL COLLATE pg_catalog."C",
    tasks text NOT NULL,
    enrolled_ms bigint NOT NULL,
    approved_ms bigint,
    last_seen_ms bigint NOT NULL,
    lost_ms bigint,
    expired_ms bigint,
    revoked_ms bigint,
    refusals bigint NOT NULL,
    quarantined_ms bigint
);

ALTER TABLE ONLY public.effects ALTER COLUMN effect_id SET DEFAULT nextval('public.effects_effect_id_seq'::regclass);

ALTER TABLE ONLY public.events ALTER COLUMN event_id SET DEFAULT nextval('public.events_event_id_seq'::regclass);

INSERT INTO public.access_tokens VALUES ('aa08a63b3c8e51001f3366165577f973160836e8442fa0606da6b3184e24c085', 'w-29c67ab45c27f29b', 'w-29c67ab45c27f29b-0000000000000001', 1600000, 1600000);
INSERT INTO public.access_tokens VALUES ('b46604329fcfdf9775204451f5190db066bb8c6d69961f07b9c08995f635880b', 'w-1904b9d2fd07ef16', 'w-1904b9d2fd07ef16-0000000000000001', 1600000, 1600000);

INSERT INTO public.alembic_version VALUES ('0005');

INSERT INTO public.assignments VALUES ('a-339cb56acb0784a8ca2ed0dd', 'run-380e62c1f970', 1, 0, 'w-29c67ab45c27f29b', 0, 1, NULL, NULL, NULL, true);
INSERT INTO public.assignments VALUES ('a-dc049a5c31aabc241709bab9', 'run-380e62c1f970', 1, 0, 'w-1904b9d2fd07ef16', 1, 1, NULL, NULL, NULL, true);
INSERT INTO public.assignments VALUES ('a-ed3cbe8ab4ef88c54675645e', 'run-380e62c1f970', 2, 1, 'w-1904b9d2fd07ef16', 1, 2, NULL, NULL, NULL, false);
INSERT INTO public.assignments VALUES ('a-111a67d5ede2ace82e38f145', 'run-380e62c1f970', 2, 1, 'w-29c67ab45c27f29b', 0, 2, NULL, NULL, NULL, true);

INSERT INTO public.effects VALUES (1, 'aggregate', 'run-380e62c1f970', 1, 1000000);

INSERT INTO public.events VALUES (1, 'run-380e62c1f970', 'run', NULL, 1000000, '{"run_id":"run-380e62c1f970","spec":{"schema_version":1,"name":"test","task":"digits","algorithm":"fed-sophia-shared","hyperparameters":{},"model":[{"name":"weight","shape":[2,3],"dtype":"float32"},{"name":"bias","shape":[3],"dtype":"float32"}],"params_digest":"4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0","seed":0,"rounds":2,"local_steps":10,"batch_size":32,"cohort_size":2,"cohort_fraction":null,"min_workers":null,"over_selection":1.0,"quorum":1,"deadline_s":60.0,"adaptive_deadline":null,"max_extensions":0,"asynchronous":null,"max_abandoned_rounds":10,"target_metric":null,"max_duration_s":null,"retention":{"last":10,"every":null,"best":null,"update_rounds":0},"weighting":"uniform","combiners":{},"encodings":{},"max_delta_norm":null},"status":"waiting","reason":null,"round":0,"version":0,"tensors":{"params":"4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0"},"members":0,"created_ms":1000000,"ended_ms":null}');
INSERT INTO public.events VALUES (2, 'run-380e62c1f970', 'round', 1, 1000000, '{"round":1,"status":"collecting","reason":null,"base_version":0,"version":null,"invited":2,"admitted":0,"declined":0,"lost":0,"opened_ms":1000000,"deadline_ms":1060000,"last_admitted_ms":null,"ended_ms":null,"bytes_up":0,"bytes_down":0,"metrics":{},"staleness":[]}');
INSERT INTO public.events VALUES (3, 'run-380e62c1f970', 'run', NULL, 1000000, '{"run_id":"run-380e62c1f970","spec":{"schema_version":1,"name":"test","task":"digits","algorithm":"fed-sophia-shared","hyperparameters":{},"model":[{"name":"weight","shape":[2,3],"dtype":"float32"},{"name":"bias","shape":[3],"dtype":"float32"}],"params_digest":"4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0","seed":0,"rounds":2,"local_steps":10,"batch_size":32,"cohort_size":2,"cohort_fraction":null,"min_workers":null,"over_selection":1.0,"quorum":1,"deadline_s":60.0,"adaptive_deadline":null,"max_extensions":0,"asynchronous":null,"max_abandoned_rounds":10,"target_metric":null,"max_duration_s":null,"retention":{"last":10,"every":null,"best":null,"update_rounds":0},"weighting":"uniform","combiners":{},"encodings":{},"max_delta_norm":null},"status":"running","reason":null,"round":1,"version":0,"tensors":{"params":"4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0"},"members":2,"created_ms":1000000,"ended_ms":null}');
INSERT INTO public.events VALUES (4, 'run-380e62c1f970', 'round', 1, 1000000, '{"round":1,"status":"committed","reason":null,"base_version":0,"version":1,"invited":2,"admitted":2,"declined":0,"lost":0,"opened_ms":1000000,"deadline_ms":1060000,"last_admitted_ms":1000000,"ended_ms":1000000,"bytes_up":1176,"bytes_down":0,"metrics":{},"staleness":[]}');
INSERT INTO public.events VALUES (5, 'run-380e62c1f970', 'round', 2, 1000000, '{"round":2,"status":"collecting","reason":null,"base_version":1,"version":null,"invited":2,"admitted":0,"declined":0,"lost":0,"opened_ms":1000000,"deadline_ms":1060000,"last_admitted_ms":null,"ended_ms":null,"bytes_up":0,"bytes_down":0,"metrics":{},"staleness":[]}');

INSERT INTO public.join_tokens VALUES ('t-fd689445de59', '8469d5813adb409072ebd3e8c148912809f273e279716899995b841ceefcceb1', 'default', 'trainer', 98, 87400000, 1000000, NULL, false, NULL, NULL);

INSERT INTO public.members VALUES ('run-380e62c1f970', 'w-29c67ab45c27f29b', 0, 0, 1000000);
INSERT INTO public.members VALUES ('run-380e62c1f970', 'w-1904b9d2fd07ef16', 1, 0, 1000000);

INSERT INTO public.operator_keys VALUES ('8efb56e30d73dd210c70e3270682eef0c44800f5189e1cf1f45eed5ddf46cabd', 'k-test', 'test', '["keys:write", "metrics:read", "runs:write", "workers:write"]', 0, NULL, NULL);

INSERT INTO public.rounds VALUES ('run-380e62c1f970', 1, 'committed', 1060000, '{"number":1,"base_version":0,"invited":2,"target":2,"quorum":1,"opened_ms":1000000,"deadline_ms":1060000,"now_ms":1000000,"partial":false,"workers":2,"extension_ms":60000,"extensions_left":0,"last_deadline_ms":null,"status":"committed","admitted":2,"last_admitted_ms":1000000,"declined":0,"lost":0,"ended_ms":1000000,"reason":null,"concurrency":null,"staleness":[],"contributors":2}', 1176, 0, NULL);
INSERT INTO public.rounds VALUES ('run-380e62c1f970', 2, 'collecting', 1060000, '{"number":2,"base_version":1,"invited":2,"target":2,"quorum":1,"opened_ms":1000000,"deadline_ms":1060000,"now_ms":1000000,"partial":false,"workers":2,"extension_ms":60000,"extensions_left":0,"last_deadline_ms":null,"status":"collecting","admitted":1,"last_admitted_ms":1000000,"declined":0,"lost":0,"ended_ms":null,"reason":null,"concurrency":null,"staleness":[],"contributors":1}', 332, 0, NULL);

INSERT INTO public.runs VALUES ('run-380e62c1f970', 'digits', 'running', '{"schema_version":1,"name":"test","task":"digits","algorithm":"fed-sophia-shared","hyperparameters":{},"model":[{"name":"weight","shape":[2,3],"dtype":"float32"},{"name":"bias","shape":[3],"dtype":"float32"}],"params_digest":"4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0","seed":0,"rounds":2,"local_steps":10,"batch_size":32,"cohort_size":2,"cohort_fraction":null,"min_workers":null,"over_selection":1.0,"quorum":1,"deadline_s":60.0,"adaptive_deadline":null,"max_extensions":0,"asynchronous":null,"max_abandoned_rounds":10,"target_metric":null,"max_duration_s":null,"retention":{"last":10,"every":null,"best":null,"update_rounds":0},"weighting":"uniform","combiners":{},"encodings":{},"max_delta_norm":null}', '{"status":"running","round":2,"round_open":true,"version":1,"abandoned_in_a_row":0,"round_lengths_ms":[0],"stretch":0,"started_ms":1000000,"metric_until_ms":null,"reason":null,"ended_ms":null}', 1000000);

INSERT INTO public.server_identity VALUES ('0a06f261bed82a4e', 1000000);

INSERT INTO public.state_tensors VALUES ('run-380e62c1f970', '4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0');
INSERT INTO public.state_tensors VALUES ('run-380e62c1f970', '8ec9060a99f6b76adff1c43c365f9087614a59f5b2649674c85b0c56b0c0ced2');
INSERT INTO public.state_tensors VALUES ('run-380e62c1f970', '91377af8b9634083959812d449c01a2af65dedc8aab40f14383662193bc2202d');
INSERT INTO public.state_tensors VALUES ('run-380e62c1f970', 'af91a11389841ea775ef000c1d2c593c0f37a35652fc2a92a8f17eb03970ccc1');

INSERT INTO public.updates VALUES ('a-339cb56acb0784a8ca2ed0dd', 'run-380e62c1f970', 1, 0, '7363e12c4ee6cfd9750511cae22e1468a3fa5e495e080faba3f0f3c7b243ea34', '{"schema_version":1,"digest":"7363e12c4ee6cfd9750511cae22e1468a3fa5e495e080faba3f0f3c7b243ea34","size_bytes":588,"bundles":["delta","hessian"],"encodings":{"delta":"f32","hessian":"f32"},"num_examples":10,"local_steps":10,"metrics":{}}', 1000000, 'counted', 1, NULL, 1000000);
INSERT INTO public.updates VALUES ('a-dc049a5c31aabc241709bab9', 'run-380e62c1f970', 1, 1, '7363e12c4ee6cfd9750511cae22e1468a3fa5e495e080faba3f0f3c7b243ea34', '{"schema_version":1,"digest":"7363e12c4ee6cfd9750511cae22e1468a3fa5e495e080faba3f0f3c7b243ea34","size_bytes":588,"bundles":["delta","hessian"],"encodings":{"delta":"f32","hessian":"f32"},"num_examples":10,"local_steps":10,"metrics":{}}', 1000000, 'counted', 1, NULL, 1000000);
INSERT INTO public.updates VALUES ('a-111a67d5ede2ace82e38f145', 'run-380e62c1f970', 2, 0, '1f32e48e0c8955d7a8ba9b575a31e972ac66a51595232cc943eecb51af6329e9', '{"schema_version":1,"digest":"1f32e48e0c8955d7a8ba9b575a31e972ac66a51595232cc943eecb51af6329e9","size_bytes":332,"bundles":["delta"],"encodings":{"delta":"f32"},"num_examples":10,"local_steps":10,"metrics":{}}', 1000000, 'pending', NULL, NULL, NULL);

INSERT INTO public.uploads VALUES ('u-f3bf32f16128d1c2094a2760bb0955c7', 'a-339cb56acb0784a8ca2ed0dd', '{"schema_version":1,"digest":"7363e12c4ee6cfd9750511cae22e1468a3fa5e495e080faba3f0f3c7b243ea34","size_bytes":588,"bundles":["delta","hessian"],"encodings":{"delta":"f32","hessian":"f32"},"num_examples":10,"local_steps":10,"metrics":{}}', 1000000);
INSERT INTO public.uploads VALUES ('u-bf84ea3d39187d9aad20530d25fb5ee0', 'a-dc049a5c31aabc241709bab9', '{"schema_version":1,"digest":"7363e12c4ee6cfd9750511cae22e1468a3fa5e495e080faba3f0f3c7b243ea34","size_bytes":588,"bundles":["delta","hessian"],"encodings":{"delta":"f32","hessian":"f32"},"num_examples":10,"local_steps":10,"metrics":{}}', 1000000);
INSERT INTO public.uploads VALUES ('u-afe223f19344ed4a6a80d2a1f7899f1a', 'a-111a67d5ede2ace82e38f145', '{"schema_version":1,"digest":"1f32e48e0c8955d7a8ba9b575a31e972ac66a51595232cc943eecb51af6329e9","size_bytes":332,"bundles":["delta"],"encodings":{"delta":"f32"},"num_examples":10,"local_steps":10,"metrics":{}}', 1000000);

INSERT INTO public.versions VALUES ('run-380e62c1f970', 0, NULL, '{"params": "4fc95c1c232c0729925e3e89a0151d3ec220aafcc5017a51155beae0a0ca75a0"}', 1000000, NULL);
INSERT INTO public.versions VALUES ('run-380e62c1f970', 1, 1, '{"params": "91377af8b9634083959812d449c01a2af65dedc8aab40f14383662193bc2202d", "direction": "af91a11389841ea775ef000c1d2c593c0f37a35652fc2a92a8f17eb03970ccc1", "hessian": "8ec9060a99f6b76adff1c43c365f9087614a59f5b2649674c85b0c56b0c0ced2"}', 1000000, NULL);

INSERT INTO public.workers VALUES ('w-29c67ab45c27f29b', 'worker-0', 'n-KxIZgDNkd3P0GLHiyuMrweRQQjEbmS6BVJELLH8Pc', 'b4A2fEkRZo2TB05YIXsOvj1E7QLsite-b6dOl3E1bV8', 't-fd689445de59', 'default', NULL, NULL, 'trainer', '["digits"]', 1000000, 1000000, 1000000, NULL, NULL, NULL, 0, NULL);
INSERT INTO public.workers VALUES ('w-1904b9d2fd07ef16', 'worker-1', 'NaZcPBfDFJXXzl5P8Ir10_JqrkB1eDqOALHqrNRqnUk', 'BwwJNrXrTcK07qHlkl00SpdPUFmjRVsGzVolnMU-BHk', 't-fd689445de59', 'default', NULL, NULL, 'trainer', '["digits"]', 1000000, 1000000, 1000000, NULL, NULL, NULL, 0, NULL);

SELECT pg_catalog.setval('public.effects_effect_id_seq', 1, true);

SELECT pg_catalog.setval('public.events_event_id_seq', 5, true);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.access_tokens
    ADD CONSTRAINT pk_access_tokens PRIMARY KEY (token_hash);

ALTER TABLE ONLY public.assignments
    ADD CONSTRAINT pk_assignments PRIMARY KEY (assignment_id);

ALTER TABLE ONLY public.effects
    ADD CONSTRAINT pk_effects PRIMARY KEY (effect_id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT pk_events PRIMARY KEY (event_id);

ALTER TABLE ONLY public.join_tokens
    ADD CONSTRAINT pk_join_tokens PRIMARY KEY (token_id);

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT pk_leases PRIMARY KEY (effect_id);

ALTER TABLE ONLY public.members
    ADD CONSTRAINT pk_members PRIMARY KEY (run_id, worker_id);

ALTER TABLE ONLY public.metrics
    ADD CONSTRAINT pk_metrics PRIMARY KEY (run_id, version, worker_id);

ALTER TABLE ONLY public.operator_keys
    ADD CONSTRAINT pk_operator_keys PRIMARY KEY (secret_hash);

ALTER TABLE ONLY public.rounds
    ADD CONSTRAINT pk_rounds PRIMARY KEY (run_id, number);

ALTER TABLE ONLY public.runs
    ADD CONSTRAINT pk_runs PRIMARY KEY (run_id);

ALTER TABLE ONLY public.server_identity
    ADD CONSTRAINT pk_server_identity PRIMARY KEY (server_id);

ALTER TABLE ONLY public.servers
    ADD CONSTRAINT pk_servers PRIMARY KEY (name);

ALTER TABLE ONLY public.state_tensors
    ADD CONSTRAINT pk_state_tensors PRIMARY KEY (run_id, digest);

ALTER TABLE ONLY public.updates
    ADD CONSTRAINT pk_updates PRIMARY KEY (assignment_id);

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT pk_uploads PRIMARY KEY (upload_id);

ALTER TABLE ONLY public.versions
    ADD CONSTRAINT pk_versions PRIMARY KEY (run_id, version);

ALTER TABLE ONLY public.workers
    ADD CONSTRAINT pk_workers PRIMARY KEY (worker_id);

ALTER TABLE ONLY public.access_tokens
    ADD CONSTRAINT uq_access_tokens_worker_id_assertion_id UNIQUE (worker_id, assertion_id);

ALTER TABLE ONLY public.assignments
    ADD CONSTRAINT uq_assignments_run_id_slot_turn UNIQUE (run_id, slot, turn);

ALTER TABLE ONLY public.join_tokens
    ADD CONSTRAINT uq_join_tokens_secret_hash UNIQUE (secret_hash);

ALTER TABLE ONLY public.members
    ADD CONSTRAINT uq_members_run_id_slot UNIQUE (run_id, slot);

ALTER TABLE ONLY public.operator_keys
    ADD CONSTRAINT uq_operator_keys_key_id UNIQUE (key_id);

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT uq_uploads_assignment_id UNIQUE (assignment_id);

ALTER TABLE ONLY public.workers
    ADD CONSTRAINT uq_workers_key_thumbprint UNIQUE (key_thumbprint);

CREATE INDEX ix_access_tokens_forget_ms ON public.access_tokens USING btree (forget_ms);

CREATE INDEX ix_assignments_run_id_round_slot ON public.assignments USING btree (run_id, round, slot);

CREATE INDEX ix_assignments_run_id_settled ON public.assignments USING btree (run_id, settled);

CREATE INDEX ix_assignments_worker_id_settled ON public.assignments USING btree (worker_id, settled);

CREATE INDEX ix_effects_done_ms ON public.effects USING btree (done_ms);

CREATE INDEX ix_events_run_id_event_id ON public.events USING btree (run_id, event_id);

CREATE INDEX ix_members_run_id_free_since_ms_slot ON public.members USING btree (run_id, free_since_ms, slot);

CREATE INDEX ix_rounds_status_deadline_ms ON public.rounds USING btree (status, deadline_ms);

CREATE INDEX ix_runs_status ON public.runs USING btree (status);

CREATE INDEX ix_state_tensors_digest ON public.state_tensors USING btree (digest);

CREATE INDEX ix_updates_digest ON public.updates USING btree (digest);

CREATE INDEX ix_updates_run_id_outcome ON public.updates USING btree (run_id, outcome);

CREATE INDEX ix_updates_run_id_round_slot ON public.updates USING btree (run_id, round, slot);

CREATE INDEX ix_updates_run_id_version ON public.updates USING btree (run_id, version);

ALTER TABLE ONLY public.access_tokens
    ADD CONSTRAINT fk_access_tokens_worker_id_workers FOREIGN KEY (worker_id) REFERENCES public.workers(worker_id);

ALTER TABLE ONLY public.assignments
    ADD CONSTRAINT fk_assignments_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.assignments
    ADD CONSTRAINT fk_assignments_worker_id FOREIGN KEY (worker_id) REFERENCES public.workers(worker_id);

ALTER TABLE ONLY public.effects
    ADD CONSTRAINT fk_effects_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT fk_events_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT fk_leases_effect_id FOREIGN KEY (effect_id) REFERENCES public.effects(effect_id);

ALTER TABLE ONLY public.members
    ADD CONSTRAINT fk_members_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.members
    ADD CONSTRAINT fk_members_worker_id FOREIGN KEY (worker_id) REFERENCES public.workers(worker_id);

ALTER TABLE ONLY public.metrics
    ADD CONSTRAINT fk_metrics_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.metrics
    ADD CONSTRAINT fk_metrics_worker_id FOREIGN KEY (worker_id) REFERENCES public.workers(worker_id);

ALTER TABLE ONLY public.rounds
    ADD CONSTRAINT fk_rounds_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.state_tensors
    ADD CONSTRAINT fk_state_tensors_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.updates
    ADD CONSTRAINT fk_updates_assignment_id FOREIGN KEY (assignment_id) REFERENCES public.assignments(assignment_id);

ALTER TABLE ONLY public.updates
    ADD CONSTRAINT fk_updates_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT fk_uploads_assignment_id FOREIGN KEY (assignment_id) REFERENCES public.assignments(assignment_id);

ALTER TABLE ONLY public.versions
    ADD CONSTRAINT fk_versions_run_id FOREIGN KEY (run_id) REFERENCES public.runs(run_id);
