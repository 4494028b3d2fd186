"""FastAPI on the SQLAlchemy async ORM with asyncpg, EdDSA tokens verified at each request."""

import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import argon2
import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import DateTime, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

KEY = os.environ["BENCH_PUBLIC_KEY"]
engine = create_async_engine(
    os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=10, max_overflow=0
)
sessions = async_sessionmaker(engine, expire_on_commit=False)
passwords = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    username: Mapped[str]
    email: Mapped[str]
    full_name: Mapped[str | None]
    role: Mapped[str]
    version: Mapped[int]
    password_hash: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class PersonCreate(BaseModel):
    username: str = Field(max_length=32)
    email: str = Field(max_length=254)
    password: str = Field(min_length=8, max_length=128)
    full_name: str | None = Field(None, max_length=128)


class PersonPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: uuid.UUID
    username: str
    email: str
    full_name: str | None
    role: str
    version: int
    created_at: datetime
    updated_at: datetime


async def get_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


async def get_claims(token: Annotated[str, Depends(OAuth2PasswordBearer("/auth/token"))]) -> dict:
    try:
        return jwt.decode(token, KEY, algorithms=["EdDSA"])
    except jwt.PyJWTError as error:
        raise HTTPException(401, "could not validate credentials") from error


ClaimsDep = Annotated[dict, Depends(get_claims)]


@app.get("/users/{person_id}", response_model=PersonPublic)
async def read(person_id: uuid.UUID, session: SessionDep, claims: ClaimsDep):
    found = await session.get(Person, person_id)
    if found is None or (claims["role"] != "admin" and claims["sub"] != str(person_id)):
        raise HTTPException(404, "user not found")
    return found


@app.get("/users", response_model=list[PersonPublic])
async def page(session: SessionDep, claims: ClaimsDep, after: uuid.UUID | None = None, limit: int = 20):
    if claims["role"] != "admin":
        raise HTTPException(403, "not enough privileges")
    wanted = select(Person).order_by(Person.id).limit(min(limit, 100))
    if after is not None:
        wanted = wanted.where(Person.id > after)
    return (await session.scalars(wanted)).all()


@app.post("/users", response_model=PersonPublic, status_code=201)
async def create(session: SessionDep, claims: ClaimsDep, body: PersonCreate):
    now = datetime.now(UTC)
    made = Person(
        id=uuid.uuid4(),
        username=body.username,
        email=body.email,
        full_name=body.full_name,
        role="user",
        version=1,
        password_hash=passwords.hash(body.password),
        created_at=now,
        updated_at=now,
    )
    session.add(made)
    try:
        await session.commit()
    except IntegrityError as error:
        raise HTTPException(409, "this user exists") from error
    return made
