-- One row a job: written by `queue-job`, kept up to date by `job-callback`, read by its owner.
create table public.jobs (
  id text primary key check (id ~ '^[A-Za-z0-9._-]{1,128}$'),
  user_id uuid not null references auth.users (id) on delete cascade,
  type text not null,
  prompt text not null,
  status text not null default 'queued' check (status in ('queued', 'processing', 'completed', 'failed')),
  -- of the newest report; reports come in any order, and more than once
  sequence bigint not null default 0,
  worker_id text,
  assets jsonb not null default '[]',
  error_message text,
  report jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create index jobs_of_user on public.jobs (user_id, created_at desc);

alter table public.jobs enable row level security;

-- Writing is left to the functions, whose key is above these rules.
create policy "owners read their jobs" on public.jobs for select using (auth.uid() = user_id);
