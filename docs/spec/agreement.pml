/* How the members of view v agree on view v+1, for spin. README.md says what the terms mean.
 *
 * Set by -D: PEERS (at most 8), FOUNDERS (2 to 5; the first so many peers are the members of view 0, the others
 * learners), VIEWS (decrees, 1 or 2), BALLOTS (per decree, at most 4), CRASHES, STEPS (at most 2), CHANGES (so many
 * of the last peers may join or leave by plan, alone or together), DEMOTE (1: a member may lose its worker),
 * WITNESSES (a mask of peers that vote and neither contribute nor hold results), RULE, CHECK (below), and single
 * weakenings of OURS: NO_NACK, NO_ACCEPTED, NO_INSTALLED, NO_FREEZE, NO_GATE, NO_GROUND, NO_FLOOR, NO_WITNESS, NO_CATCH_UP.
 * PROGRESS (with HOSTS) and TRACE (trace.pml) are other uses of the same transitions.
 *
 * A message is a step of its receiver that reads and writes shared state; one that is lost is a step not taken.
 * What a peer said before it died can still arrive. Ballots have no owner: any live reporter of a ballot may
 * propose in it, any live member may count its votes. This allows every run that fixed owners allow, so also
 * every take-over of one proposer by another, as often as there are ballots.
 */

#define OURS      0
#define SURVIVORS 1 /* more than half of those not gone; the votes of the gone are forgotten */
#define EVERYBODY 2 /* more than half of all members, or everybody not gone; the votes of the gone are forgotten */
#define LOOSE     3 /* half of the weight of those not gone is enough */
#define PLAIN     4 /* more than half of all members, gone or not */

#define SAFE    0 /* every promise */
#define LIVING  1 /* only: no two living peers are members of different views with one id */
#define REACHED 2 /* SAFE, and no run gets far: shows, by failing, that SAFE does not hold for want of runs */

#ifndef RULE
#define RULE OURS
#endif
#ifndef CHANGES
#define CHANGES 0
#endif
#ifndef DEMOTE
#define DEMOTE 0
#endif
#ifndef WITNESSES
#define WITNESSES 0
#endif
#ifndef CHECK
#define CHECK SAFE
#endif

#define BIT(p)       (1 << (p))
#define HAS(m, p)    (((m) >> (p)) & 1)
#define WITHIN(a, b) (((a) & ~(b)) == 0)
#if PEERS > 5
#define COUNT(m)     (HAS(m, 0) + HAS(m, 1) + HAS(m, 2) + HAS(m, 3) + HAS(m, 4) + HAS(m, 5) + HAS(m, 6) + HAS(m, 7))
#elif PEERS > 4
#define COUNT(m)     (HAS(m, 0) + HAS(m, 1) + HAS(m, 2) + HAS(m, 3) + HAS(m, 4))
#else
#define COUNT(m)     (HAS(m, 0) + HAS(m, 1) + HAS(m, 2) + HAS(m, 3))
#endif
#define LOWEST(m)    ((m) & (~(m) + 1))
#define MAX(a, b)    ((a) > (b) -> (a) : (b))
#define NAME(p)      (65 + (p))
#define LETTER(m, p) (HAS(m, p) -> NAME(p) : '-')
#define NAMES(m)     LETTER(m, 0), LETTER(m, 1), LETTER(m, 2), LETTER(m, 3), LETTER(m, 4), LETTER(m, 5), LETTER(m, 6)

/* Twice the weight of q among members m: 2 each, 3 for the lowest rank of an even number. */
#define WEIGHT(q, m)  (2 * COUNT((q) & (m)) + (COUNT(m) % 2 == 0 && ((q) & LOWEST(m)) != 0))
#define HALF(q, g, m) (2 * WEIGHT((q) & ~(g), m) > WEIGHT((m) & ~(g), m))
#if RULE == EVERYBODY
#define QUORUM(q, g, m) (HALF(q, 0, m) || WITHIN((m) & ~(g), q))
#elif RULE == LOOSE
#define QUORUM(q, g, m) (2 * WEIGHT((q) & ~(g), m) >= WEIGHT((m) & ~(g), m))
#elif RULE == PLAIN
#define QUORUM(q, g, m) HALF(q, 0, m)
#else
#define QUORUM(q, g, m) HALF(q, g, m)
#endif

/* Peers. The first three are what last words hold; a dead peer's stay as they were. */
byte view[PEERS];     /* installed view */
byte promised[PEERS]; /* highest ballot promised or accepted for decree view+1; 0: none */
byte accepted[PEERS]; /* highest ballot accepted for decree view+1; 0: none */
byte finished[PEERS]; /* last step finished */
bit opened[PEERS];    /* step finished+1 is open: this peer's contribution to it may have arrived everywhere */
byte held[PEERS];     /* what promises forbid until the decision: FREE, GATED (to open), FROZEN (to finish, too) */
byte dead;
byte crashes;
#define FREE   0
#define GATED  1
#define FROZEN 2

/* Ballots 1..BALLOTS of decree d. A value is named by the ballot in which it was made. */
#define AT(d, b) (((d) - 1) * BALLOTS + (b) - 1)
#define SLOTS    (VIEWS * BALLOTS)
byte kind[SLOTS];      /* what its promises forbid: GATED for a planned change, FROZEN after a failure */
byte reporters[SLOTS]; /* those who promised, until the ballot proposes */
byte highest[SLOTS];   /* highest ballot that the reporters had accepted when they promised */
byte value[SLOTS];     /* 0: not proposed yet */
byte gone[SLOTS];
byte voters[SLOTS];
byte new_members[SLOTS]; /* the value made in this ballot */
byte new_first[SLOTS];
bit new_abort[SLOTS];

/* Views. */
#if FOUNDERS == 2
#define ALL 3
#elif FOUNDERS == 3
#define ALL 7
#elif FOUNDERS == 4
#define ALL 15
#else
#define ALL 31
#endif
byte chosen[VIEWS + 1]; /* the value that has a quorum; 0: none */
byte members[VIEWS + 1] = { ALL };
byte first[VIEWS + 1] = { 1 }; /* first step that runs under it */
bit aborts[VIEWS + 1];

/* Steps 1..STEPS. Results of a step are equal if and only if it ran under the same view. */
#define NONE 7
#if STEPS > 0
#define RESULT(p, s) result[((s) - 1) * PEERS + (p)]
#define ON(w, s)     ((w) * STEPS + (s) - 1)
byte result[STEPS * PEERS];            /* the view under which a peer's result was made */
byte contributed[(VIEWS + 1) * STEPS]; /* who opened this step under this view */
byte acknowledged[(VIEWS + 1) * STEPS]; /* which members of this view ever held this step */
byte stable[STEPS + 1] = NONE;         /* the view whose result is stable */
byte entry[PEERS] = 1;                 /* first step of the view that made this peer a member */
#endif

/* The view under which a peer with view v runs step s. */
#if VIEWS > 1
#define RUNS(v, s) ((v) > 1 && (s) >= first[2] -> 2 : ((v) > 0 && (s) >= first[1] -> 1 : 0))
#else
#define RUNS(v, s) ((v) > 0 && (s) >= first[1] -> 1 : 0)
#endif

/* Used within one atomic step: 0 between steps, or not part of the state. */
byte i, x, g, h, go;
hidden byte d, s, w, q, r, last, late, known;

#ifdef TRACE
hidden byte me;
#define ME me
#else
#define ME _pid
#endif
#define ALIVE(p) (!HAS(dead, p))
#define WORKERS(v) (members[v] & ~(WITNESSES))
#define DECREE   (view[ME] + 1)
#define VOTES    (ALIVE(ME) && view[ME] < VIEWS && HAS(members[view[ME]], ME))
#define HAS_VIEW(p, v)  (view[p] >= (v))
#define FIRST_HAVE(v)   (HAS_VIEW(0, v) || HAS_VIEW(1, v) || HAS_VIEW(2, v) || HAS_VIEW(PEERS - 1, v))
#if PEERS > 5
#define SOMEBODY_HAS(v) (FIRST_HAVE(v) || HAS_VIEW(3, v) || HAS_VIEW(4, v) || HAS_VIEW(5, v) || HAS_VIEW(PEERS - 2, v))
#else
#define SOMEBODY_HAS(v) (FIRST_HAVE(v) || HAS_VIEW(PEERS - 2, v))
#endif

/* A promise that comes after its ballot proposed only forbids things to its giver: leaving it out loses no run. */
#define CAN_PROMISE(b, k) (VOTES && promised[ME] < b && !value[AT(DECREE, b)] && (!kind[AT(DECREE, b)] || kind[AT(DECREE, b)] == k))
/* Without steps the kind of a ballot shows only in its value, so it may as well be fixed when it proposes. */
#define IS(b, k) (STEPS == 0 || kind[AT(DECREE, b)] == k)
#define CAN_PROPOSE(b)    (VOTES && HAS(reporters[AT(DECREE, b)], ME) && QUORUM(reporters[AT(DECREE, b)], dead & ~reporters[AT(DECREE, b)], members[view[ME]]))
#ifdef PROGRESS
/* Before the calm, all ballots but the last, any crash, and hosts that are lost with their words. After it, the last
 * ballot, which stands for one that nobody interrupts; its proposer has all words that can be had. */
bit calm;
byte lost;     /* dead, and their words can't be had */
byte owner[SLOTS]; /* who proposed, and so counts the votes; 0: nobody, else 1 + the peer */
#define SEALED (dead & ~lost)
#define TELLS(p) (HAS(SEALED, p) && HAS_VIEW(p, 1))
#define TOLD   (TELLS(0) || TELLS(1) || TELLS(2) || TELLS(PEERS - 2) || TELLS(PEERS - 1))
#define LIVES_IN(p) (!HAS(dead | lost, p) && HAS_VIEW(p, 1))
#define HEARD  (LIVES_IN(0) || LIVES_IN(1) || LIVES_IN(2) || LIVES_IN(PEERS - 2) || LIVES_IN(PEERS - 1))
#define COUNTED(b) (owner[b - 1] == ME + 1 && QUORUM(voters[b - 1], gone[b - 1], members[0]))
#if BALLOTS == 2
#define COUNTED_ANY (COUNTED(1) || COUNTED(2))
#else
#define COUNTED_ANY (COUNTED(1) || COUNTED(2) || COUNTED(3))
#endif
#define TIME(b)     (calm == (b == BALLOTS))
#define MAY_PROPOSE(b) (!TOLD && QUORUM(reporters[AT(DECREE, b)], SEALED, ALL))
#define MAY_INSTALL (TOLD || HEARD || COUNTED_ANY)
#define IN(p)       (HAS(dead, p) || !HAS(ALL, p) || HAS_VIEW(p, 1))
#define ALL_IN      (IN(0) && IN(1) && IN(2) && IN(PEERS - 2) && IN(PEERS - 1))
#ifdef NO_CONDITION
#define CONNECTED   (ALL & ~dead) /* somebody lives */
#else
#define CONNECTED   HALF(ALL & ~dead, SEALED, ALL)
#endif
#else
#define TIME(b)     true
#define MAY_PROPOSE(b) true
#define MAY_INSTALL true
#endif

#define CAN_PLAN(b)       (!g && reporters[AT(DECREE, b)] == members[view[ME]])
#define CAN_ACCEPT(b)     (VOTES && promised[ME] <= b && accepted[ME] != b && value[AT(DECREE, b)])
#define CAN_INSTALL       (ALIVE(ME) && view[ME] < VIEWS && chosen[DECREE] && (HAS(members[view[ME]], ME) || SOMEBODY_HAS(DECREE)))

/* --- what must hold ----------------------------------------------------------------------------------------- */

#if STEPS > 0
/* A stable step is never run again, and later members that hold the step hold this result. */
inline stable_steps_stay() {
	s = 1;
	do
	:: s <= STEPS && stable[s] == NONE -> s++
	:: s <= STEPS && stable[s] != NONE ->
		w = stable[s] + 1;
		do
		:: w <= VIEWS -> assert(!chosen[w] || s < first[w]); w++
		:: else -> break
		od;
		q = 0;
		do
		:: q < PEERS ->
			assert(!(ALIVE(q) && HAS(members[view[q]], q) && view[q] >= stable[s] && finished[q] >= s)
				|| RESULT(q, s) == stable[s]);
			q++
		:: else -> break
		od;
		s++
	:: else -> break
	od
}

/* Counts what p holds, for every view it has been in since the step ran; a step that all have held is stable. */
inline acknowledge(p) {
	s = 1;
	do
	:: s <= finished[p] ->
		w = RESULT(p, s);
		do
		:: w <= view[p] ->
			if
			:: HAS(WORKERS(w), p) -> acknowledged[ON(w, s)] = acknowledged[ON(w, s)] | BIT(p)
			:: else
			fi;
			if
			:: acknowledged[ON(w, s)] == WORKERS(w) ->
				assert(stable[s] == NONE || stable[s] == RESULT(p, s));
				stable[s] = RESULT(p, s)
			:: else
			fi;
			w++
		:: else -> break
		od;
		s++
	:: else -> break
	od;
	stable_steps_stay()
}

/* Members of the new view d hold, for each step, the result of the view that governs it (so they agree, and who lacks
 * one knows what to fetch). If older rounds are void, one of them has, or had when it died, the last result before. */
inline new_members_agree() {
	q = 0; known = 0;
	do
	:: q < PEERS && !HAS(WORKERS(d), q) -> q++
	:: q < PEERS && HAS(WORKERS(d), q) ->
		known = known || !ALIVE(q) || finished[q] + 1 >= first[d];
		s = 1;
		do
		:: s <= finished[q] -> assert(!ALIVE(q) || (s < first[d] && RESULT(q, s) == RUNS(d, s))); s++
		:: else -> break
		od;
		q++
	:: else -> break
	od;
	assert(known || !aborts[d] || DEMOTE);
	stable_steps_stay()
}
#endif

#if CHECK == REACHED
/* A joiner was promoted, a member died, the others went on, and a step became stable under the last view. */
inline look_how_far() {
	if
	:: (dead & ~members[VIEWS]) && aborts[VIEWS] && HAS(members[VIEWS], PEERS - 1) && stable[STEPS] == VIEWS ->
		printf("  that is far\n");
		assert(false)
	:: else
	fi
}
#endif

/* Ballot b of decree d has got its quorum. */
inline choose(b) {
	if
	:: !chosen[d] ->
		chosen[d] = value[AT(d, b)];
		members[d] = new_members[AT(d, chosen[d])];
		first[d] = new_first[AT(d, chosen[d])];
		aborts[d] = new_abort[AT(d, chosen[d])];
		printf("  so view %d is decided: members %c%c%c%c%c%c%c\n", d, NAMES(members[d]))
#if STEPS > 0 && !defined(TRACE)
		; new_members_agree()
#endif
	:: chosen[d] && chosen[d] != value[AT(d, b)] ->
		w = new_members[AT(d, value[AT(d, b)])];
		printf("  so view %d is decided AGAIN: members %c%c%c%c%c%c%c\n", d, NAMES(w));
#if CHECK == LIVING
		q = 0;
		do
		:: q < PEERS ->
			assert(!(ALIVE(q) && view[q] >= d && HAS(members[d], q)) || WITHIN(w, dead) || members[d] == w);
			q++
		:: else -> break
		od
#else
		assert(false)
#endif
	:: else
	fi
}

/* Clears what can play no part any more, so that histories with one future are one state. */
inline forget() {
#ifdef TRACE
	skip /* histories are short */
#else
	w = 1;
	do
	:: w <= VIEWS ->
		q = 0; last = NONE; /* the lowest ballot of decree w that a live voter can still take part in */
		do
		:: q < PEERS && ALIVE(q) && HAS(members[w - 1], q) && view[q] < w ->
			r = (view[q] == w - 1 -> promised[q] : 0);
			last = (r < last -> r : last);
			q++
		:: q < PEERS && !(ALIVE(q) && HAS(members[w - 1], q) && view[q] < w) -> q++
		:: else -> break
		od;
		s = 1;
		do
		:: s <= BALLOTS ->
			if
			:: s < last ->
				kind[AT(w, s)] = 0; reporters[AT(w, s)] = 0; highest[AT(w, s)] = 0;
				voters[AT(w, s)] = 0; gone[AT(w, s)] = 0
			:: else
			fi;
			if
			:: last == NONE ->
				value[AT(w, s)] = 0; new_members[AT(w, s)] = 0; new_first[AT(w, s)] = 0; new_abort[AT(w, s)] = 0
			:: else
			fi;
			s++
		:: else -> break
		od;
		w++
	:: else -> break
	od
#endif
}

/* --- agreement ------------------------------------------------------------------------------------------------ */

inline promise(b, k) {
	d = DECREE;
	printf("  %c promises ballot %d of view %d\n", NAME(ME), b, d);
	promised[ME] = b;
	kind[AT(d, b)] = k;
#if STEPS > 0
	held[ME] = MAX(held[ME], k);
#endif
	reporters[AT(d, b)] = reporters[AT(d, b)] | BIT(ME);
	highest[AT(d, b)] = MAX(accepted[ME], highest[AT(d, b)]);
	forget()
}

inline accept(b) {
	d = DECREE;
	printf("  %c accepts ballot %d of view %d\n", NAME(ME), b, d);
	promised[ME] = b;
	accepted[ME] = b;
	voters[AT(d, b)] = voters[AT(d, b)] | BIT(ME);
	if
	:: QUORUM(voters[AT(d, b)], gone[AT(d, b)], members[d - 1]) -> choose(b)
	:: else
	fi;
	forget()
}

/* g: any set of dead members; their last words are in hand. */
inline pick_gone() {
#ifdef PROGRESS
	g = SEALED & members[view[ME]];
	i = 0
#else
	do
	:: i < PEERS && HAS(dead & members[view[ME]], i) -> g = g | BIT(i); i++
	:: i < PEERS -> i++
	:: i == PEERS -> break
	od;
	i = 0
#endif
}

/* go: ballot b has its promises, and no last words forbid it. h: the highest ballot accepted by any of them. */
inline read_words(b) {
	d = DECREE;
	h = highest[AT(d, b)];
	go = QUORUM(reporters[AT(d, b)], g, members[d - 1]);
#if RULE == OURS
	q = 0;
	do
	:: q < PEERS ->
		if
		:: HAS(g, q) && view[q] == d - 1 ->
			skip
#ifndef NO_NACK
			; go = go && promised[q] <= b
#endif
#ifndef NO_ACCEPTED
			; h = MAX(accepted[q], h)
#endif
#ifndef NO_INSTALLED
		:: HAS(g, q) && view[q] >= d -> go = 0 /* these words tell the decision */
#endif
		:: else
		fi;
		q++
	:: else -> break
	od
#endif
}

/* last, late: the last step that one of r finished, opened. known: one of r holds all that is stable. */
inline read_reports() {
	q = 0; last = 0; late = 0; known = 0;
	do
	:: q < PEERS && HAS(r, q) ->
		last = MAX(finished[q], last);
		late = MAX(finished[q] + opened[q], late);
#if STEPS > 0 && !defined(NO_GROUND)
#ifdef NO_WITNESS
		known = known || finished[q] + 1 >= entry[q];
#else
		known = known || (!HAS(WITNESSES, q) && finished[q] + 1 >= entry[q]);
#endif
#else
		known = 1;
#endif
		q++
	:: q < PEERS && !HAS(r, q) -> q++
	:: else -> break
	od
}

/* go: all in x that would join (are not in r) know of the rounds that the base view voids. Jumping over a view that
 * voids nothing is harmless. */
inline check_joiners() {
	q = 0;
#ifndef NO_CATCH_UP
	do
	:: q < PEERS -> go = go && !(aborts[d - 1] && HAS(x & ~r, q) && view[q] < d - 1); q++
	:: else -> break
	od
#endif
}

/* The proposer's own value, for a failure (k FROZEN: x have no worker) or planned (x join or leave). */
inline make_value(b, k) {
	d = DECREE;
	r = reporters[AT(d, b)] & ~g;
	read_reports();
	check_joiners();
	r = (k == FROZEN -> r & ~x : (r & ~x) | (x & ~r));
	go = go && known && (r & ~(WITNESSES));
	if
	:: go ->
		value[AT(d, b)] = b;
		new_members[AT(d, b)] = r;
		new_abort[AT(d, b)] = (k == FROZEN);
		new_first[AT(d, b)] = (k == FROZEN -> last : late) + 1
#ifndef NO_FLOOR
		; new_first[AT(d, b)] = MAX(new_first[AT(d, b)], (k == GATED -> first[d - 1] : 0))
#endif
	:: else
	fi
}

inline close_ballot(b) {
	d = DECREE;
	if
	:: value[AT(d, b)] ->
		h = value[AT(d, b)];
		printf("  %c proposes in it, with %c%c%c%c%c%c%c gone: members %c%c%c%c%c%c%c, first step %d\n",
			NAME(ME), NAMES(g), NAMES(new_members[AT(d, h)]), new_first[AT(d, h)]);
		gone[AT(d, b)] = g;
#ifdef PROGRESS
		owner[AT(d, b)] = ME + 1;
#endif
		kind[AT(d, b)] = 0;
		reporters[AT(d, b)] = 0;
		highest[AT(d, b)] = 0
	:: else
	fi;
	g = 0; h = 0; x = 0; go = 0
}

/* x: any of the last CHANGES peers; members among them leave, the others join, whether they live or not. */
inline pick_changes() {
	i = PEERS - CHANGES;
	do
	:: i < PEERS -> x = x | BIT(i); i++
	:: i < PEERS -> i++
	:: i == PEERS -> break
	od;
	i = 0
}

inline propose(b) {
	pick_gone();
	d_step { read_words(b) };
	if
	:: go && h -> value[AT(DECREE, b)] = value[AT(DECREE, h)]
	:: go && !h && IS(b, FROZEN) -> x = 0; d_step { make_value(b, FROZEN) }
	:: go && !h && IS(b, FROZEN) && DEMOTE -> x = BIT(ME); d_step { make_value(b, FROZEN) }
	:: go && !h && IS(b, GATED) && CHANGES && CAN_PLAN(b) -> pick_changes(); d_step { make_value(b, GATED) }
	:: else
	fi;
	d_step { close_ballot(b) }
}

inline install() {
	d = DECREE;
	printf("  %c installs view %d\n", NAME(ME), d);
#if STEPS > 0 && !defined(TRACE)
	w = RUNS(view[ME], finished[ME] + 1);
	do
	:: aborts[d] && finished[ME] >= first[d] ->
		assert(!HAS(members[d], ME)); /* only learners, and those cut off, go back */
		RESULT(ME, finished[ME]) = 0;
		finished[ME]--
	:: else -> break
	od;
	if
	:: aborts[d] || RUNS(d, finished[ME] + 1) != w -> opened[ME] = 0
	:: else
	fi;
	if
	:: HAS(members[d], ME) && !HAS(members[d - 1], ME) -> entry[ME] = first[d]
	:: else
	fi;
#endif
#if STEPS > 0
	held[ME] = FREE;
#endif
	view[ME] = d;
	promised[ME] = 0;
	accepted[ME] = 0;
	forget()
#if STEPS > 0 && !defined(TRACE)
	; acknowledge(ME)
#endif
#if CHECK == REACHED
	; look_how_far()
#endif
}

inline die() {
	printf("  %c dies\n", NAME(ME));
	dead = dead | BIT(ME);
	crashes++;
#if STEPS > 0 && !defined(TRACE)
	if
	:: held[ME] == FREE -> finished[ME] = 0; opened[ME] = 0
	:: else /* it has reported them */
	fi;
	s = 1;
	do
	:: s <= STEPS -> RESULT(ME, s) = 0; s++
	:: else -> break
	od;
	entry[ME] = (held[ME] == FREE -> 1 : entry[ME]);
#endif
	forget()
}

/* --- steps ---------------------------------------------------------------------------------------------------- */

#if STEPS > 0
#define NEXT  (finished[ME] + 1)
#define UNDER RUNS(view[ME], NEXT)
#define WORKS (ALIVE(ME) && finished[ME] < STEPS && !HAS(WITNESSES, ME))
#ifdef NO_GATE
#define MAY_OPEN true
#else
#define MAY_OPEN (held[ME] == FREE)
#endif
#ifdef NO_FREEZE
#define MAY_FINISH true
#else
#define MAY_FINISH (held[ME] != FROZEN)
#endif
#define CAN_OPEN   (WORKS && MAY_OPEN && !opened[ME] && HAS(members[UNDER], ME) && !(aborts[view[ME]] && NEXT < first[view[ME]]))
#define CAN_FINISH (WORKS && MAY_FINISH && contributed[ON(UNDER, NEXT)] == WORKERS(UNDER))

inline open_step() {
	w = UNDER; s = NEXT;
	printf("  %c opens step %d under view %d\n", NAME(ME), s, w);
	opened[ME] = 1;
	contributed[ON(w, s)] = contributed[ON(w, s)] | BIT(ME)
}

/* In the round, or by fetching its result: all who have it have the same. */
inline finish_step() {
	w = UNDER; s = NEXT;
	printf("  %c has step %d of view %d\n", NAME(ME), s, w);
	RESULT(ME, s) = w;
	finished[ME] = s;
	opened[ME] = 0;
	acknowledge(ME)
#if CHECK == REACHED
	; look_how_far()
#endif
}
#endif

#define BALLOT(b) \
	:: d_step { TIME(b) && CAN_PROMISE(b, FROZEN) -> promise(b, FROZEN); skip } \
	:: d_step { CHANGES && STEPS && CAN_PROMISE(b, GATED) -> promise(b, GATED); skip } \
	:: atomic { TIME(b) && CAN_PROPOSE(b) && MAY_PROPOSE(b) && !value[AT(DECREE, b)] -> propose(b) } \
	:: d_step { TIME(b) && CAN_ACCEPT(b) -> accept(b); skip }

#ifndef TRACE
active [PEERS] proctype peer() {
	do
	BALLOT(1)
#if BALLOTS > 1
	BALLOT(2)
#endif
#if BALLOTS > 2
	BALLOT(3)
#endif
#if BALLOTS > 3
	BALLOT(4)
#endif
	:: d_step { CAN_INSTALL && MAY_INSTALL -> install(); skip }
#ifdef PROGRESS
	:: d_step { !calm && crashes < CRASHES && ALIVE(ME) -> die(); skip }
	:: d_step { !calm && crashes < CRASHES && COUNT(lost) < HOSTS && ALIVE(ME) -> die(); lost = lost | BIT(ME) }
#else
	:: d_step { crashes < CRASHES && ALIVE(ME) -> die(); skip }
#endif
#if STEPS > 0
	:: d_step { CAN_OPEN -> open_step(); skip }
	:: d_step { CAN_FINISH -> finish_step(); skip }
#endif
	od
}
#ifdef PROGRESS
active proctype calms() { d_step { !calm -> calm = 1; printf("  that is calm\n") } }

never { /* not: whenever it is calm and a quorum is connected, all who live get to install the view */
	do
	:: true
	:: calm && CONNECTED && !(ALL_IN) -> break
	od;
accept_stuck:
	do
	:: !(ALL_IN)
	od
}
#endif
#endif
