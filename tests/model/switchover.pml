/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The switch-over and its recovery, for spin to walk through completely. docs/switchover.md says what is modelled,
 * what is assumed and what is left out; `run` in this folder compiles and checks it.
 *
 * Model                        Code
 * ---------------------------  ---------------------------------------------------------------------------
 * proctype vmm                 libramlift-vmm: machine.c (handle(): the handlers; lost(): rl_vmm_machine_lost),
 *                              vmm.c (socket_main: serve, settle, visit)
 * hello()                      daemon.c greet_main -> resume_session, at the source
 * vm_ask(), vm_result()        control/vmm.c exchange, call; ended_result(): rl_vm_session_end
 * proctype source_ramliftd     source_session.c
 *   migrate                    rl_source_session_main: pause_guest, drain and prepare, commit_here, commit_there
 *   resolve                    resolve with ask_outcome and commit_there, then finish
 *   give_up, release           give_up, source_release
 *   idle                       rl_source_session_recover
 * proctype notifier            notice.c rl_notice_abort, out of rl_source_session_abort and finish
 * proctype target_ramliftd     sink_session.c
 *   receive                    sink_main: receive, rl_vm_state_put
 *   await                      await_decision with relink
 *   decide .. in_doubt         decide, sink_abort; let_go(): sink_release
 *   idle                       rl_sink_session_recover
 * proctype target_threads      threads beside the session: accept_main with answer_outcome (answer()), greet_main
 *                              with resume_session (greeting), rl_session_end (tail)
 * known()                      daemon.c rl_daemon_outcome
 * proctype chaos               kill -9 of a ramliftd, a connection that breaks
 * proctype monitor             what must hold when nothing can happen any more
 *
 * Macros: FAULTS, how many faults may happen in one run; TIDY and WITNESS_*, see monitor. PLANT_* and OLD_* take
 * one rule away each, for `run` to see that spin finds what the rule is there for:
 *
 * PLANT_COMMIT_FIRST  the source's VMM is told COMMITTING before the target is told to commit
 * PLANT_RESUME        a committed source never resumes by itself
 * PLANT_RUN           a target that is READY runs only when it was told to
 * OLD_NOTICE          who gives up after `switchover` tells the target until it says `aborted`
 * OLD_TOLD            also when the target said `error`: its VMM may be READY all the same
 * OLD_DEATH           a VMM that died counts as one whose guest was still only if it was. NO_FLAG: the same without
 *                     a word of the VMM on it in the shared page: a guest that may have run counts as lost
 * OLD_END             a VMM that refuses SESSION_END has to register again
 * OLD_COMMITTED       a session that takes up a READY VM cannot be cancelled from its first moment on
 * OLD_GIVEN_UP        a session whose VMM is out of step but lives ends in doubt, not as aborted
 * OLD_ORDER           `aborted` is said after the VMM was told to forget
 */

#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef CRASHES
#define CRASHES 2 /* of these, kills of a ramliftd */
#endif

#define S 0
#define T 1
#define NOTIFIER 2 /* an asker beside the source's session */
#define NC 3       /* TCP connections at a time, old ones that nobody has read yet included */
#define NONE NC    /* no connection */

mtype:phase = { RUNNING, INCOMING, MIGRATING, PAUSED, COMMITTED, RECEIVING, READY, MOVED };
mtype:request = { PAUSE, COMMITTING, STATE_PUT, RUN, END_ABORTED, END_COMPLETED };
mtype:reply = { OK, REFUSED, LOST };
mtype:msg = { switchover, ready, commit, error, outcome, abort, running, aborted, busy, unknown, closed };

/* The VMMs. */
mtype:phase phase[2];
bool alive[2] = true;
bool last_aborted[2]; /* last_outcome is RL_VMM_ABORTED */

/* The socket between a VMM and its ramliftd. SHUT: closed by ramliftd, what it sent can still be read. */
#define OPEN 0
#define SHUT 1
#define CLOSED 2
byte link[2] = OPEN;
bool held[2] = true;  /* a session has taken the VM; nobody of its name may register */
mtype:request req[2]; /* 0: none */
mtype:reply rep[2];

/* TCP connections from source to target; a free one is closed at both ends. */
#define BACKLOG 1 /* the target has not read its first message */
#define PEER 2    /* of the session */
#define HANDED 3  /* handed over to the session, which has not looked yet */
bool csrc[NC];
byte ctgt[NC];
bool broken[NC];
chan up[NC] = [3] of { mtype:msg };
chan dn[NC] = [3] of { mtype:msg };
mtype:msg nil;

/* The daemons. */
bool is_up[2] = true;
bool kill[3];      /* session of S, session of T, notifier: ends here */
byte peer[3];      /* connection of S's session, of T's session, of the notifier */
bool news[3];      /* an asker that was told nothing final asks again only when something changed */
bool s_recover, s_notice; /* what a HELLO at the source starts */
bool s_known;      /* source_known(): a source session of this migration is in the list */
byte t_live;       /* T's session: 0 none, 1 live, 2 live and committed */
bool t_recover, t_cancel, relink, new_abort;
byte new_peer;
byte greeting;     /* 1: READY registered */
bool greet_abort;
mtype:msg tail;    /* a session that let go of its VM and is about to end, as running, aborted or unknown */
mtype:msg ended;   /* the sessions' last word: running, aborted, or 0 */
bool cancelling;   /* answer_outcome between hand_over and rl_session_cancel */

/* What the properties are about. */
byte faults = FAULTS, crashes = CRASHES;
bool complete;     /* the target holds all memory and state */
bool s_went_on;    /* the source ran after it was paused: the copy is old */
bool t_ran;
#ifdef WITNESS_BACK
bool was_committed;
#endif
bool s_crashed, t_crashed, t_unseen, expired;

#define fault (faults > 0)
#ifdef OLD_GIVEN_UP
#define GREETED 2
#else
#define GREETED 1
#endif
#define gone(i) (link[i] != OPEN)
#define s_runs (alive[S] && (phase[S] == RUNNING || phase[S] == MIGRATING))
#define t_runs (alive[T] && phase[T] == RUNNING)
#define anew() news[S] = true; news[NOTIFIER] = true

/* ------------------------------------------------------------------ the VMMs */

inline source_resumes()
{
	phase[S] = RUNNING;
	last_aborted[S] = true;
	assert(!t_runs);
#ifndef IGNORE_OLD_COPY
	assert(!t_ran);
#endif
	s_went_on = true
}

inline target_forgets()
{
	phase[T] = INCOMING;
	last_aborted[T] = true;
	complete = false
}

inline lost(i)
{
	if
	:: phase[i] == PAUSED -> source_resumes()
	:: phase[i] == MIGRATING -> phase[i] = RUNNING; last_aborted[i] = true
	:: phase[i] == RECEIVING -> target_forgets()
	:: else
	fi
}

/* Carry out the request; what may fail there, fails as a fault. */
inline handle(i)
{
	if
	:: req[i] == PAUSE -> phase[i] = PAUSED; rep[i] = OK
	:: req[i] == COMMITTING -> phase[i] = COMMITTED; rep[i] = OK;
#ifdef WITNESS_BACK
		was_committed = true
#endif
	:: req[i] == STATE_PUT -> phase[i] = READY; complete = true; rep[i] = OK
	:: req[i] == RUN ->
		assert(phase[i] == READY && complete);
		phase[i] = RUNNING;
		assert(!s_runs);
#ifndef IGNORE_OLD_COPY
		assert(!s_went_on);
#endif
		t_ran = true;
		rep[i] = OK
	:: req[i] == END_COMPLETED -> phase[i] = MOVED; rep[i] = OK
	:: req[i] == END_ABORTED ->
		if
		:: phase[i] == MIGRATING -> phase[i] = RUNNING; last_aborted[i] = true
		:: phase[i] == PAUSED || phase[i] == COMMITTED -> source_resumes()
		:: phase[i] == RECEIVING || phase[i] == READY -> target_forgets()
		:: else /* -EBADRQC */
		fi;
		rep[i] = OK
	:: fault && req[i] != COMMITTING && req[i] != END_COMPLETED -> faults--; rep[i] = REFUSED
	fi;
	req[i] = 0
}

inline hello(i)
{
	link[i] = OPEN;
	anew();
	if
	:: i == S && phase[S] == COMMITTED -> s_recover = true
	:: i == S && phase[S] == RUNNING && last_aborted[S] && !s_known -> s_notice = true
	:: i == T && phase[T] == READY -> greeting = 1
	:: else
	fi
}

proctype vmm(byte i)
{
	do
	:: atomic { link[i] != CLOSED && req[i] != 0 -> handle(i) }
	:: atomic { link[i] == SHUT && req[i] == 0 -> link[i] = CLOSED; rep[i] = 0; lost(i) }
	:: atomic { link[i] == CLOSED && is_up[i] && !held[i] && !(i == T && greeting != 0) -> hello(i) }
	:: atomic { link[i] == OPEN && fault -> /* it closes its socket: out of step, or told to by its user */
		faults--; link[i] = CLOSED; req[i] = 0; rep[i] = 0; lost(i) }
	:: atomic { fault -> /* it dies */
		if
		:: i == T && (link[T] != OPEN || !held[T]) -> t_unseen = true
		:: else
		fi;
		faults--; alive[i] = false; link[i] = CLOSED; req[i] = 0; rep[i] = 0; anew(); break }
	od
}

/* One request of ramliftd, and its result; a deadline that passes is a fault. */
inline vm_ask(i, r) { atomic { rep[i] = 0; if :: !gone(i) -> req[i] = r :: gone(i) fi } }

inline vm_result(i, res)
{
	if
	:: !gone(i) && rep[i] != 0 -> res = rep[i]; rep[i] = 0
	:: gone(i) -> res = LOST
	:: !gone(i) && fault -> faults--; link[i] = SHUT; rep[i] = 0; res = LOST
	fi
}

/* rl_vm_session_end(): a VMM that refuses has to come back and say where it stands. */
inline ended_result(i, res)
{
	vm_result(i, res);
#ifndef OLD_END
	if :: res == REFUSED && !gone(i) -> link[i] = SHUT :: else fi;
#endif
	res = 0
}

/* ------------------------------------------------------------------ TCP */

inline purge(q)
{
	do
	:: nempty(q) -> q?nil; nil = 0
	:: empty(q) -> break
	od
}

inline tidy(c)
{
	if
	:: !csrc[c] && ctgt[c] == 0 -> purge(up[c]); purge(dn[c]); broken[c] = false
	:: else
	fi
}

inline say_up(c, m) { if :: ctgt[c] != 0 && !broken[c] -> up[c]!m :: else fi }
inline say_down(c, m) { if :: csrc[c] && !broken[c] -> dn[c]!m :: else fi }

inline close_source(w)
{
	if :: peer[w] != NONE -> csrc[peer[w]] = false; tidy(peer[w]); peer[w] = NONE :: else fi
}

inline close_target(c)
{
	if :: c != NONE -> ctgt[c] = 0; tidy(c) :: else fi
}

#define free(c) (!csrc[c] && ctgt[c] == 0)
#define up_at_end(c) (empty(up[c]) && (!csrc[c] || broken[c]))
#define down_at_end(c) (empty(dn[c]) && (ctgt[c] == 0 || broken[c]))

/* A new connection with its first message. */
inline ask(w, m)
{
	is_up[T] && (free(0) || free(1) || free(2)) ->
	if :: free(0) -> peer[w] = 0 :: else -> if :: free(1) -> peer[w] = 1 :: else -> peer[w] = 2 fi fi;
	csrc[peer[w]] = true;
	ctgt[peer[w]] = BACKLOG;
	up[peer[w]]!m;
	news[w] = true
}

/* The next message for asker @w, or its end; silence is a fault. */
inline hear(w, m)
{
	if
	:: nempty(dn[peer[w]]) -> dn[peer[w]]?m
	:: down_at_end(peer[w]) -> m = closed
	:: fault -> faults--; m = closed
	fi
}

/* ------------------------------------------------------------------ the source's ramliftd */

proctype source_ramliftd()
{
	mtype:msg m;
	mtype:reply res;
	bool first = true, vmm_dead, told;

boot:
	{
		if
		:: first -> goto migrate
		:: else -> goto idle
		fi;
migrate:
		vm_ask(S, PAUSE);
		atomic { vm_result(S, res); if :: res != OK -> goto give_up :: else fi;
			say_up(peer[S], switchover); told = true };
		atomic {
			if
			:: goto give_up /* cancelled, or no device state */
			:: hear(S, m)
			fi;
			if
#ifdef OLD_TOLD
			:: m == error -> told = false; goto give_up
			:: m == closed -> goto give_up
#else
			:: m == error || m == closed -> goto give_up
#endif
			:: else -> assert(m == ready)
			fi
		};
#ifndef PLANT_COMMIT_FIRST
		vm_ask(S, COMMITTING);
		atomic {
			vm_result(S, res);
			if
			:: res == OK
			:: res == OK && down_at_end(peer[S]) -> res = 0; goto give_up /* peer_left() */
#if defined OLD_DEATH
			:: res != OK && !alive[S] -> vmm_dead = true
			:: res != OK && alive[S] -> goto give_up
#elif defined NO_FLAG
			:: res != OK -> goto give_up
#else
			/* It died with its guest still: the shared page says so. */
			:: res != OK && !alive[S] && !s_went_on -> vmm_dead = true
			:: res != OK && (alive[S] || s_went_on) -> goto give_up
#endif
			fi;
			res = 0
		};
#endif
		atomic { say_up(peer[S], commit); told = false };
		atomic { hear(S, m) };
resolve:
		do
		:: atomic { m == running || m == aborted -> break }
#ifdef PLANT_RESUME
		:: atomic { m == closed -> m = aborted; break }
#endif
		:: atomic { m != running && m != aborted -> m = 0; close_source(S) };
			atomic { news[S] -> ask(S, outcome) };
			atomic { hear(S, m); if :: m != ready -> goto resolve :: else fi; say_up(peer[S], commit) };
			atomic { hear(S, m) }
		od;
		if
		:: m == running && !vmm_dead -> vm_ask(S, END_COMPLETED)
		:: m == aborted && !vmm_dead -> vm_ask(S, END_ABORTED)
		:: vmm_dead -> goto release
		fi;
		atomic { ended_result(S, res); goto release };
give_up:
		atomic { say_up(peer[S], error); m = 0; res = 0 };
		vm_ask(S, END_ABORTED);
		atomic { ended_result(S, res) };
#ifndef OLD_NOTICE
		atomic { if :: told -> s_notice = true :: else fi };
#endif
release:
		atomic { close_source(S); held[S] = false; m = 0; told = false };
idle:
		atomic { s_recover -> s_recover = false;
			if
			:: !gone(S) && !held[S] && phase[S] == COMMITTED -> held[S] = true; m = closed; goto resolve
			:: else -> goto idle
			fi }
	} unless {
		atomic { kill[S] -> kill[S] = false; first = false; vmm_dead = false; told = false; m = 0; res = 0 }
	};
	is_up[S] = true;
	goto boot
}

proctype notifier()
{
	mtype:msg m;

boot:
	{
		do
		:: atomic { s_notice -> s_notice = false; s_known = true; news[NOTIFIER] = true };
			do
			:: atomic { news[NOTIFIER] -> ask(NOTIFIER, abort) };
#ifdef OLD_NOTICE
				atomic { close_source(NOTIFIER); break }
#else
				atomic {
					hear(NOTIFIER, m);
					close_source(NOTIFIER);
					if
					:: m == aborted || m == running -> m = 0; break
					:: else -> m = 0
					fi
				}
#endif
			:: atomic { fault -> faults--; expired = true; break } /* it gives up in the end */
			od
		od
	} unless {
		atomic { kill[NOTIFIER] -> kill[NOTIFIER] = false; m = 0 }
	};
	goto boot
}

/* ------------------------------------------------------------------ the target's ramliftd */

/* rl_daemon_outcome() */
inline known(st)
{
	if
	:: ended == running -> st = running
	:: else ->
		if
		:: t_live == 2 || tail == running || tail == unknown -> st = ready
		:: else ->
			if
			:: t_live == 1 || tail == aborted -> st = busy
			:: else ->
				if
				:: ended == aborted -> st = aborted
				:: else ->
					if
					:: gone(T) || held[T] -> st = unknown
					:: else ->
						if
						:: phase[T] == READY -> st = ready
						:: phase[T] == INCOMING -> st = aborted
						:: phase[T] == RUNNING -> st = running
						:: else -> st = unknown
						fi
					fi
				fi
			fi
		fi
	fi
}

inline no_news(c)
{
	if
	:: peer[S] == c -> news[S] = false
	:: peer[NOTIFIER] == c -> news[NOTIFIER] = false
	:: else
	fi
}

/* answer_outcome(): hand the connection over to a session that is READY, or answer. */
inline answer(c, m, st)
{
	up[c]?m;
	known(st);
	if
	:: st == ready && (tail == running || tail == unknown) && t_live == 0 -> no_news(c); close_target(c) /* ends unheard */
	:: st == ready && t_live == 2 && new_peer == NONE ->
		new_peer = c;
		ctgt[c] = HANDED;
		new_abort = (m == abort);
		relink = true
	:: else ->
		if :: m == abort && t_live != 0 -> cancelling = true :: else fi;
		say_down(c, st);
		if :: st != running && st != aborted -> no_news(c) :: else fi;
		close_target(c)
	fi;
	m = 0;
	st = 0
}

proctype target_threads()
{
	mtype:msg m, st;

	do
	:: atomic { ctgt[0] == BACKLOG && nempty(up[0]) -> answer(0, m, st) }
	:: atomic { ctgt[1] == BACKLOG && nempty(up[1]) -> answer(1, m, st) }
	:: atomic { ctgt[2] == BACKLOG && nempty(up[2]) -> answer(2, m, st) }
	:: atomic { ctgt[0] == BACKLOG && up_at_end(0) -> close_target(0) }
	:: atomic { ctgt[1] == BACKLOG && up_at_end(1) -> close_target(1) }
	:: atomic { ctgt[2] == BACKLOG && up_at_end(2) -> close_target(2) }
	:: atomic { cancelling -> /* rl_session_cancel() */
		cancelling = false;
		if :: t_live == 1 && !t_cancel -> t_cancel = true; anew() :: else fi }
	:: atomic { tail != 0 -> /* rl_session_end() */
		if :: tail != unknown -> ended = tail :: else fi;
		tail = 0;
		anew() }
#ifdef OLD_GIVEN_UP
	:: atomic { greeting == 1 -> known(st); greet_abort = (st == aborted); st = 0; greeting = 2 }
#endif
	:: atomic { greeting == GREETED && t_live == 0 && !t_recover ->
		greeting = 0;
#ifdef OLD_GIVEN_UP
		new_abort = greet_abort;
		relink = greet_abort;
		greet_abort = false;
#endif
#ifdef OLD_COMMITTED
		t_live = 1;
#else
		t_live = 2;
#endif
		t_recover = true;
		anew() }
	od
}

inline say_runs() { if :: peer[T] != NONE -> say_down(peer[T], running) :: else fi }

/* A session that has let go of its VM. */
inline let_go(how)
{
	close_target(peer[T]);
	peer[T] = NONE;
	held[T] = false;
	close_target(new_peer);
	new_peer = NONE;
	relink = false;
	new_abort = false;
	t_cancel = false;
	t_live = 0;
	tail = how;
	anew()
}

proctype target_ramliftd()
{
	mtype:reply res;
	bool first = true, run_sent;

boot:
	{
		if
		:: first -> goto receive
		:: else -> goto idle
		fi;
receive:
		if
		:: atomic { nempty(up[peer[T]]) && up[peer[T]]?[switchover] -> up[peer[T]]?nil; nil = 0 };
			vm_ask(T, STATE_PUT);
			atomic { vm_result(T, res); if :: res != OK -> goto forget :: else fi; res = 0 }
		:: atomic { nempty(up[peer[T]]) && up[peer[T]]?[error] -> goto forget }
		:: atomic { up_at_end(peer[T]) -> goto forget }
		:: atomic { gone(T) -> goto forget }
		:: goto forget /* cancelled, or silence */
		fi;
		atomic { if :: t_cancel -> goto forget :: else -> t_live = 2 fi };
		atomic { say_down(peer[T], ready) };
await:
		do
		:: atomic { gone(T) -> goto failed }
#ifdef OLD_COMMITTED
		:: atomic { t_cancel && tail == 0 -> let_go(unknown); goto idle }
#endif
		:: atomic { relink ->
			relink = false;
			if
			:: new_peer != NONE ->
				close_target(peer[T]);
				peer[T] = new_peer;
				ctgt[peer[T]] = PEER;
				new_peer = NONE
			:: else
			fi;
			anew();
			if
			:: new_abort -> new_abort = false; t_live = 1; goto forget
			:: else -> say_down(peer[T], ready)
			fi }
		:: atomic { peer[T] != NONE && nempty(up[peer[T]]) ->
			if
			:: up[peer[T]]?error -> t_live = 1; goto forget
			:: up[peer[T]]?commit -> goto decide
			fi }
		:: atomic { peer[T] != NONE && up_at_end(peer[T]) -> close_target(peer[T]); peer[T] = NONE; anew() }
#ifdef PLANT_RUN
		:: atomic { peer[T] == NONE -> goto decide }
#endif
		od;
decide:
		run_sent = true;
		vm_ask(T, RUN);
		atomic {
			vm_result(T, res);
			if
			:: res == OK -> say_runs()
			:: else
			fi
		};
		if
		:: res == OK -> goto ran
		:: else -> res = 0
		fi;
failed:
		atomic {
			if
			:: gone(T) && alive[T] -> goto in_doubt
			:: !gone(T)
#if defined OLD_DEATH
			:: gone(T) && !alive[T]
#elif defined NO_FLAG
			/* It died when it had been told to run: it may have. */
			:: gone(T) && !alive[T] && run_sent -> t_unseen = true; say_runs(); goto ran
			:: gone(T) && !alive[T] && !run_sent
#else
			/* It died, and the shared page says that its guest had been running. */
			:: gone(T) && !alive[T] && t_ran -> say_runs(); goto ran
			:: gone(T) && !alive[T] && !t_ran
#endif
			fi;
			if :: run_sent -> t_live = 2 :: else -> t_live = 1 fi
		};
#ifdef OLD_ORDER
		atomic { if :: peer[T] != NONE -> say_down(peer[T], aborted) :: else fi };
#endif
forget:
		res = 0;
		vm_ask(T, END_ABORTED);
		atomic { ended_result(T, res);
			if :: peer[T] != NONE -> say_down(peer[T], error) :: else fi };
		atomic {
			if
#ifndef OLD_GIVEN_UP
			:: gone(T) && alive[T] -> goto in_doubt
			:: (!gone(T) || !alive[T]) && tail == 0 -> let_go(aborted); goto idle
#else
			:: tail == 0 -> let_go(aborted); goto idle
#endif
			fi
		};
ran:
		atomic { tail == 0 -> let_go(running); goto idle };
in_doubt:	/* the VMM is out of step, but lives: its next HELLO says where it stands */
		atomic { tail == 0 ->
#ifdef OLD_GIVEN_UP
			if
			:: !run_sent -> let_go(aborted); goto idle
			:: else
			fi;
#endif
			let_go(unknown) };
idle:
		atomic { t_recover -> t_recover = false; t_live = 2; run_sent = false; res = 0; anew();
			if
			:: !gone(T) && !held[T] && phase[T] == READY -> held[T] = true; goto await
			:: else -> tail == 0; let_go(unknown); goto idle
			fi }
	} unless {
		atomic { kill[T] -> kill[T] = false; first = false; run_sent = false; res = 0 }
	};
	atomic { is_up[T] = true; anew() };
	goto boot
}

/* ------------------------------------------------------------------ what happens to them */

inline vm_let_go(i)
{
	held[i] = false;
	rep[i] = 0;
	if :: link[i] == OPEN -> link[i] = SHUT :: else fi
}

inline crash_source()
{
	kill[S] = true;
	kill[NOTIFIER] = true;
	is_up[S] = false;
	s_crashed = true;
	s_recover = false;
	s_notice = false;
	s_known = false;
	close_source(S);
	close_source(NOTIFIER);
	vm_let_go(S)
}

inline crash_target()
{
	kill[T] = true;
	is_up[T] = false;
	t_crashed = true;
	peer[T] = NONE;
	close_target(0);
	close_target(1);
	close_target(2);
	new_peer = NONE;
	relink = false;
	new_abort = false;
	t_cancel = false;
	t_live = 0;
	t_recover = false;
	tail = 0;
	cancelling = false;
	greeting = 0;
	greet_abort = false;
	ended = 0;
	vm_let_go(T)
}

/* What was on its way may have been lost with the connection, or not. */
inline cut(c)
{
	faults--;
	broken[c] = true;
	if :: purge(up[c]) :: skip fi;
	if :: purge(dn[c]) :: skip fi;
	anew()
}

proctype chaos()
{
	do
	:: atomic { fault && crashes > 0 && is_up[S] && !kill[S] && !kill[NOTIFIER] ->
		faults--; crashes--; crash_source() }
	:: atomic { fault && crashes > 0 && is_up[T] && !kill[T] -> faults--; crashes--; crash_target() }
	:: atomic { fault && !free(0) && !broken[0] -> cut(0) }
	:: atomic { fault && !free(1) && !broken[1] -> cut(1) }
	:: atomic { fault && !free(2) && !broken[2] -> cut(2) }
	od
}

/*
 * Nothing can happen any more. Who is left must be able to live with it; the cases that an operator has to decide
 * are those that docs/switchover.md lists. TIDY: nor is a target left that waits for a word that will not come.
 */
proctype monitor()
{
	timeout ->
	assert(!(s_runs && t_runs));
	if
	:: alive[S] && alive[T] -> assert((phase[S] == RUNNING) != (phase[T] == RUNNING));
		assert(phase[S] == RUNNING || phase[S] == MOVED)
	:: !alive[S] && alive[T] -> assert(phase[S] != MOVED || phase[T] == RUNNING)
	:: alive[S] && !alive[T] ->
		assert(phase[S] == RUNNING || t_ran || t_crashed || t_unseen);
		assert(phase[S] != PAUSED && phase[S] != MIGRATING)
	:: else
	fi;
#ifdef WITNESS_MOVED /* it must be possible */
	assert(!(s_crashed && t_crashed && phase[S] == MOVED && phase[T] == RUNNING));
#endif
#ifdef WITNESS_BACK
	assert(!(was_committed && alive[S] && alive[T] && phase[S] == RUNNING));
#endif
#ifdef TIDY
	if
	:: alive[T] && !expired && (alive[S] || !s_crashed) -> assert(phase[T] == RUNNING || phase[T] == INCOMING)
	:: else
	fi
#endif
}

init {
	atomic {
		phase[S] = MIGRATING;
		phase[T] = RECEIVING;
		csrc[0] = true;
		ctgt[0] = PEER;
		peer[S] = 0;
		peer[T] = 0;
		peer[NOTIFIER] = NONE;
		new_peer = NONE;
		s_known = true;
		t_live = 1;
		run vmm(S);
		run vmm(T);
		run source_ramliftd();
		run notifier();
		run target_ramliftd();
		run target_threads();
		run chaos();
		run monitor()
	}
}
